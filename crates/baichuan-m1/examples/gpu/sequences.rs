//! Sequences with memory of their own, as the engine would give it to them.

use baichuan_engine::model::{Rows, StepBatch, StepEntry, Wants};
use baichuan_engine::{BlockId, CausalLm, SlotId, TokenId};
use baichuan_m1::cuda::CudaModel;

use crate::Outcome;

/// One sequence: the blocks of its slot, and how far it is. Blocks are taken crosswise, so that neighbours in a
/// table are not neighbours in memory.
pub(crate) struct Sequence {
    slot: SlotId,
    global: Vec<BlockId>,
    window: Vec<BlockId>,
    pub(crate) n_cached: usize,
}

/// Sequences that divide a model's memory evenly.
pub(crate) fn sequences(model: &mut CudaModel, n: usize) -> Vec<Sequence> {
    let plan = model.spec().cache;
    let blocks = |total: usize, slot: usize, most: usize| {
        (0..(total / n).min(most))
            .map(|i| BlockId((i * n + slot) as u32))
            .collect()
    };
    let sequence = |slot: usize| Sequence {
        slot: SlotId(slot as u32),
        global: blocks(plan.global_blocks, slot, usize::MAX),
        window: blocks(plan.window_blocks, slot, plan.window_rows / plan.block_tokens),
        n_cached: 0,
    };
    let all: Vec<Sequence> = (0..n).map(sequence).collect();
    all.iter().for_each(|sequence| model.reset_slot(sequence.slot));
    all
}

impl Sequence {
    pub(crate) fn entry<'a>(&'a self, tokens: &'a [TokenId], wants: Wants<'a>) -> StepEntry<'a> {
        StepEntry {
            slot: self.slot,
            tokens,
            start: self.n_cached,
            global: &self.global,
            window: &self.window,
            wants,
        }
    }

    /// Runs tokens in chunks and returns all their logits, row after row.
    pub(crate) fn logits(
        &mut self,
        model: &mut CudaModel,
        tokens: &[TokenId],
        chunk: usize,
    ) -> Outcome<Vec<Rows>> {
        self.rows(model, tokens, chunk, Wants::AllLogits)
    }

    pub(crate) fn rows(
        &mut self,
        model: &mut CudaModel,
        tokens: &[TokenId],
        chunk: usize,
        wants: Wants,
    ) -> Outcome<Vec<Rows>> {
        let mut all = Vec::new();
        for tokens in tokens.chunks(chunk) {
            let entry = self.entry(tokens, wants);
            all.extend(model.forward(&StepBatch { entries: &[entry] })?.entries);
            self.n_cached += tokens.len();
        }
        Ok(all)
    }

    /// Forgets everything.
    pub(crate) fn restart(&mut self, model: &mut CudaModel) {
        self.n_cached = 0;
        model.reset_slot(self.slot);
    }
}

/// One step: tokens for each sequence; returns the most likely next ones.
pub(crate) fn choose(
    model: &mut CudaModel,
    sequences: &mut [Sequence],
    tokens: &[Vec<TokenId>],
) -> Outcome<Vec<TokenId>> {
    let entries: Vec<StepEntry<'_>> = sequences
        .iter()
        .zip(tokens)
        .map(|(sequence, tokens)| sequence.entry(tokens, Wants::LastLogits))
        .collect();
    let chosen = model.most_likely(&StepBatch { entries: &entries })?;
    for (sequence, tokens) in sequences.iter_mut().zip(tokens) {
        sequence.n_cached += tokens.len();
    }
    chosen
        .into_iter()
        .map(|token| token.ok_or("no token was chosen".into()))
        .collect()
}
