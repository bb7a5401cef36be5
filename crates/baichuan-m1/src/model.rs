//! The whole model, as the engine drives it.

use std::sync::Arc;

use baichuan_engine::model::{
    CacheCopy, Freed, HiddenRows, ModelSpec, Rows, StepBatch, StepEntry, StepOutput, Wants,
};
use baichuan_engine::{CausalLm, SlotId, StepError};
use baichuan_kernels::{Matrix, Threads};
use candle_core::{Device, Result, Tensor};
use mistralrs_quant::QuantMethod;

use crate::cache::Caches;
use crate::config::BaichuanConfig;
use crate::host;
use crate::layer::DecoderLayer;
use crate::step::Step;

/// A loaded Baichuan-M1 with memory for its sequences. Made by [`crate::load`].
pub struct BaichuanM1 {
    pub(crate) config: BaichuanConfig,
    pub(crate) threads: Threads,
    /// `[vocab, hidden]`.
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<DecoderLayer>,
    /// `[hidden]`.
    pub(crate) final_norm: Vec<f32>,
    /// `[vocab, hidden]`, rows of length one.
    pub(crate) head: Arc<dyn QuantMethod>,
    pub(crate) caches: Caches,
    pub(crate) spec: ModelSpec,
}

impl CausalLm for BaichuanM1 {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &StepBatch<'_>) -> std::result::Result<StepOutput, StepError> {
        self.step(batch)
            .map_err(|error| StepError::Compute(error.to_string()))
    }

    fn reset_slot(&mut self, slot: SlotId) {
        self.caches.reset(slot);
    }

    fn copy(&mut self, copy: &CacheCopy<'_>) -> std::result::Result<(), StepError> {
        self.caches.copy(copy);
        Ok(())
    }

    fn scrub(&mut self, freed: &Freed<'_>) {
        self.caches.scrub(freed);
    }
}

/// Which rows of a step an entry's output is made of.
pub(crate) enum Output {
    /// Nothing.
    None,
    /// As many rows of the logits.
    Logits(usize),
    /// As many hidden states.
    Hidden(usize),
    /// One row: hidden states of as many tokens, added up; each times its position if so.
    Sum { rows: usize, weighted: bool },
}

impl BaichuanM1 {
    fn step(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput> {
        let step = Step::new(&self.config, batch);
        let width = self.config.hidden_size;
        let mut x = vec![0.0; batch.n_tokens() * width];
        let tokens = batch.entries.iter().flat_map(|entry| entry.tokens);
        for (row, &token) in x.chunks_exact_mut(width).zip(tokens) {
            if token as usize >= self.config.vocab_size {
                candle_core::bail!("token {token} of {}", self.config.vocab_size);
            }
            self.embedding.dequantize_row(token as usize, row);
        }
        let mut x = host::rows(x, width)?;
        for (layer, cache) in self.layers.iter().zip(self.caches.layers()) {
            x = layer.forward(&self.threads, &x, &step, cache)?;
        }
        self.outputs(&x, &step)
    }

    /// Final norm and head, on the rows that somebody wants.
    fn outputs(&self, x: &Tensor, step: &Step<'_>) -> Result<StepOutput> {
        let (outputs, normed_rows, logit_rows) = outputs_of(step);
        let sizes = (self.config.hidden_size, self.config.vocab_size);
        if normed_rows.is_empty() {
            return Ok(split(sizes, outputs, &[], &[]));
        }
        let wanted = x.index_select(&Tensor::new(normed_rows, &Device::Cpu)?, 0)?;
        let hidden = host::norm(
            &self.threads,
            &wanted,
            &self.final_norm,
            self.config.rms_norm_eps as f32,
        )?;
        let logits = match logit_rows.is_empty() {
            true => Vec::new(),
            false => {
                let rows = hidden.index_select(&Tensor::new(logit_rows, &Device::Cpu)?, 0)?;
                self.head.forward(&rows)?.flatten_all()?.to_vec1()?
            }
        };
        let hidden = hidden.flatten_all()?.to_vec1()?;
        Ok(split(sizes, outputs, &hidden, &logits))
    }
}

/// What becomes of each entry; the rows whose hidden states that needs, and which of those need logits.
pub(crate) fn outputs_of<'a>(step: &Step<'a>) -> (Vec<(&'a StepEntry<'a>, Output)>, Vec<u32>, Vec<u32>) {
    let (mut outputs, mut normed_rows, mut logit_rows) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, rows) in step.entries() {
        let (output, wanted) = match entry.wants {
            // The specification says that the host chooses: nobody asks this model to.
            Wants::Nothing | Wants::Sample(_) => (Output::None, 0..0),
            Wants::LastLogits => (Output::Logits(1), rows.end - 1..rows.end),
            Wants::AllLogits => (Output::Logits(rows.len()), rows),
            Wants::Hidden(HiddenRows::First) => (Output::Hidden(1), rows.start..rows.start + 1),
            Wants::Hidden(HiddenRows::Last) => (Output::Hidden(1), rows.end - 1..rows.end),
            Wants::Hidden(HiddenRows::All) => (Output::Hidden(rows.len()), rows),
            Wants::Hidden(sum @ (HiddenRows::Sum | HiddenRows::WeightedSum)) => {
                let weighted = sum == HiddenRows::WeightedSum;
                let rows_summed = rows.len();
                (
                    Output::Sum {
                        rows: rows_summed,
                        weighted,
                    },
                    rows,
                )
            }
        };
        if matches!(output, Output::Logits(_)) {
            let first = normed_rows.len() as u32;
            logit_rows.extend(first..first + wanted.len() as u32);
        }
        normed_rows.extend(wanted.map(|row| row as u32));
        outputs.push((entry, output));
    }
    (outputs, normed_rows, logit_rows)
}

/// Gives each entry its part of the hidden states and logits of a step, rows of these widths.
pub(crate) fn split(
    (h, v): (usize, usize),
    outputs: Vec<(&StepEntry<'_>, Output)>,
    hidden: &[f32],
    logits: &[f32],
) -> StepOutput {
    let (mut hidden, mut logits) = (hidden.chunks_exact(h), logits.chunks_exact(v));
    let entry_rows = |(entry, output): (&StepEntry<'_>, Output)| match output {
        Output::None => Rows::default(),
        Output::Logits(rows) => {
            hidden.by_ref().take(rows).for_each(drop);
            Rows::new(v, logits.by_ref().take(rows).flatten().copied().collect())
        }
        Output::Hidden(rows) => Rows::new(h, hidden.by_ref().take(rows).flatten().copied().collect()),
        Output::Sum { rows, weighted } => {
            let mut sum = vec![0.0; h];
            for (i, row) in hidden.by_ref().take(rows).enumerate() {
                let weight = if weighted {
                    (entry.start + i + 1) as f32
                } else {
                    1.0
                };
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
            Rows::new(h, sum)
        }
    };
    let entries = outputs.into_iter().map(entry_rows).collect();
    StepOutput::of_rows(entries)
}
