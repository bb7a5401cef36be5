//! One step of the engine, prepared for the layers: whose the rows are and how far each is turned.
//!
//! The tokens of all entries, prefill chunks and decodes alike, are one matrix `[tokens, width]` to everything that
//! treats each row for itself. Only attention and convolution look at which rows belong together.

use std::ops::Range;

use baichuan_engine::BlockId;
use baichuan_engine::model::{StepBatch, StepEntry};
use baichuan_kernels::{Layout, Span};

use crate::config::BaichuanConfig;
use crate::rope::Rotation;

/// A step as the layers see it.
pub(crate) struct Step<'a> {
    entries: &'a [StepEntry<'a>],
    n_tokens: usize,
    /// One for each width of heads that the model has.
    rotations: Vec<Rotation>,
}

impl<'a> Step<'a> {
    pub(crate) fn new(config: &BaichuanConfig, batch: &StepBatch<'a>) -> Self {
        let mut head_dims: Vec<usize> = config.layers.iter().map(|layer| layer.head_dim).collect();
        head_dims.sort_unstable();
        head_dims.dedup();
        let positions = |entry: &StepEntry<'_>| entry.start..entry.start + entry.tokens.len();
        let rotation = |head_dim| {
            Rotation::new(
                config.rope_theta,
                head_dim,
                batch.entries.iter().flat_map(positions),
            )
        };
        Self {
            entries: batch.entries,
            n_tokens: batch.n_tokens(),
            rotations: head_dims.into_iter().map(rotation).collect(),
        }
    }

    /// Rows of the step.
    pub(crate) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Each entry and its rows.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a StepEntry<'a>, Range<usize>)> {
        self.entries.iter().scan(0, |next, entry| {
            let first = *next;
            *next += entry.tokens.len();
            Some((entry, first..*next))
        })
    }

    /// The angles for heads of this width, which is one of the configuration's.
    pub(crate) fn rotation(&self, head_dim: usize) -> Option<&Rotation> {
        self.rotations
            .iter()
            .find(|rotation| rotation.head_dim() == head_dim)
    }

    /// The entries as attention takes them, for a layer whose blocks are used as `layout` says.
    pub(crate) fn spans(&self, layout: Layout) -> Vec<Span<'a>> {
        let blocks = |entry: &StepEntry<'a>| match layout {
            Layout::Paged => entry.global,
            Layout::Ring { .. } => entry.window,
        };
        let span = |entry: &StepEntry<'a>| Span {
            tokens: entry.tokens.len(),
            start: entry.start,
            blocks: BlockId::as_u32s(blocks(entry)),
            layout,
        };
        self.entries.iter().map(span).collect()
    }
}
