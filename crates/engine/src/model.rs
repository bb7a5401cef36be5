//! The seam between the engine and one model.
//!
//! The engine owns ids, lengths and budgets; the model owns tensors. A model is always called from one
//! thread, the engine's worker.

use crate::error::StepError;
use crate::ids::{BlockId, SlotId, TokenId};
use crate::kv::{CachePlan, CacheSpec};

mod sampling;

pub use sampling::{Sampling, Seen};

/// One causal language model, driven step by step from one thread.
pub trait CausalLm: Send {
    /// What the engine must know of the model; fixed for its life.
    fn spec(&self) -> &ModelSpec;

    /// Runs one step and returns one output per entry, in their order.
    ///
    /// Writes keys, values and carried state of every entry's tokens. What an entry yields must not depend on
    /// the other entries, nor on how its tokens were cut into steps. After an error nothing that the step's
    /// entries hold may be relied on.
    fn forward(&mut self, batch: &StepBatch<'_>) -> Result<StepOutput, StepError>;

    /// Makes a slot as if it had never been used.
    fn reset_slot(&mut self, slot: SlotId);

    /// Copies the cached state of one sequence to blocks and a slot that another one has just got.
    fn copy(&mut self, copy: &CacheCopy<'_>) -> Result<(), StepError>;

    /// Makes the model as if it had just been loaded, after a step that panicked or steps that only failed: its
    /// weights stay where they are, everything cached is forgotten. No sequence holds memory meanwhile, and a step
    /// to warm up follows. An error leaves the engine dead.
    ///
    /// A model whose only state beside its weights is in slots and blocks needs nothing else than this default.
    fn recover(&mut self) -> Result<(), StepError> {
        for slot in 0..self.spec().cache.slots {
            self.reset_slot(SlotId(slot as u32));
        }
        Ok(())
    }

    /// Overwrites freed memory with NaN, so that nothing of it can be read again unnoticed.
    ///
    /// Called for all freed memory when [`crate::EngineConfig::scrub_freed`] is set, and never otherwise.
    fn scrub(&mut self, freed: &Freed<'_>);
}

/// What the engine must know of a model.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// Width of a row of logits.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Longest sequence, prompt and completion together, in tokens.
    pub max_context: usize,
    /// What each layer keeps per sequence; a layer may keep several things.
    pub layers: Vec<CacheSpec>,
    /// How many blocks and slots the model's tensors were made for.
    pub cache: CachePlan,
    /// Whether it answers [`Wants::Sample`]; else it is never asked, and the host chooses.
    pub samples: bool,
}

/// The work of one step: prefill chunks and decodes, mixed.
#[derive(Clone, Copy, Debug)]
pub struct StepBatch<'a> {
    /// At most one entry per sequence.
    pub entries: &'a [StepEntry<'a>],
}

impl StepBatch<'_> {
    /// New tokens over all entries.
    pub fn n_tokens(&self) -> usize {
        self.entries.iter().map(|e| e.tokens.len()).sum()
    }
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepEntry<'a> {
    /// Where the sequence keeps fixed-size state.
    pub slot: SlotId,
    /// New this step: a chunk of prompt, or one token. Never empty.
    pub tokens: &'a [TokenId],
    /// Position of `tokens[0]`; everything before it is cached.
    pub start: usize,
    /// Global blocks covering `0 .. start + tokens.len()`: position `p` is row `p % block_tokens` of block
    /// `p / block_tokens`. Empty when no layer is paged.
    pub global: &'a [BlockId],
    /// The ring's blocks: position `p` is row `r % block_tokens` of block `r / block_tokens`, where
    /// `r = p % window_rows` ([`CachePlan::window_rows`]). While the sequence is shorter than the ring, only the
    /// blocks it has reached. Empty when no layer slides.
    pub window: &'a [BlockId],
    /// What the engine needs back.
    pub wants: Wants<'a>,
}

/// What the engine needs back of an entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wants<'a> {
    /// Nothing: more of the prompt follows.
    Nothing,
    /// The token after the last one, chosen where the logits are: see [`StepOutput::chosen`].
    Sample(Sampling<'a>),
    /// Logits of the last token: one row of `vocab_size`.
    LastLogits,
    /// Logits of every token of the entry.
    AllLogits,
    /// Hidden states after the final norm: one row of `hidden_size`, except for [`HiddenRows::All`].
    Hidden(HiddenRows),
}

/// Which hidden states, or which sum of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenRows {
    /// Of the entry's first token.
    First,
    /// Of the entry's last token.
    Last,
    /// Σ over the entry's tokens.
    Sum,
    /// Σ over the entry's tokens, each times its position counted from 1.
    WeightedSum,
    /// One row per token.
    All,
}

/// Rows of equal width, one after another, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    /// `values` holds whole rows of `width`.
    pub fn new(width: usize, values: Vec<f32>) -> Self {
        debug_assert!(width > 0 && values.len().is_multiple_of(width));
        Self { width, values }
    }

    /// The rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// The last row, if there is one.
    pub fn last(&self) -> Option<&[f32]> {
        self.iter().last()
    }

    /// All values, row after row.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

/// What a step produced.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// One per entry, in their order; empty rows for [`Wants::Nothing`] and [`Wants::Sample`].
    pub entries: Vec<Rows>,
    /// One per entry, in their order: the token chosen for [`Wants::Sample`], none if its logits were no numbers and
    /// for everything else. Empty if no entry wants one.
    pub chosen: Vec<Option<TokenId>>,
}

impl StepOutput {
    /// Rows alone.
    pub fn of_rows(entries: Vec<Rows>) -> Self {
        Self {
            entries,
            chosen: Vec::new(),
        }
    }
}

/// A sequence's whole cached state, from where to where.
#[derive(Clone, Copy, Debug)]
pub struct CacheCopy<'a> {
    /// Source and destination slot.
    pub slot: (SlotId, SlotId),
    /// Source and destination blocks of the global pool.
    pub global: &'a [(BlockId, BlockId)],
    /// Source and destination blocks of the window pool.
    pub window: &'a [(BlockId, BlockId)],
}

/// What a sequence gave back.
#[derive(Clone, Copy, Debug)]
pub struct Freed<'a> {
    /// Its slot.
    pub slot: SlotId,
    /// Its blocks of the global pool.
    pub global: &'a [BlockId],
    /// Its blocks of the window pool.
    pub window: &'a [BlockId],
}
