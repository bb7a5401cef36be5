//! The forward pass: what is issued to the device for one step.

use baichuan_kernels::cuda::{Attention, ConvLayer, Device, GpuError, Output, Span, Step};

use super::memory::HEAD_ROWS;
use super::weights::{LayerWeights, product};
use super::{CudaModel, tables::Arrangement};

/// How many of what a step has.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Entries of one token, the first rows.
    pub(super) n_single: usize,
    /// All entries.
    pub(super) n_entries: usize,
    /// All rows.
    pub(super) n_rows: usize,
    /// Tokens of the longest chunk.
    pub(super) longest: usize,
}

impl Extent {
    /// Single tokens only.
    pub(super) fn single(n: usize) -> Self {
        Self {
            n_single: n,
            n_entries: n,
            n_rows: n,
            longest: 1,
        }
    }

    pub(super) fn of(arrangement: &Arrangement) -> Self {
        Self {
            n_single: arrangement.n_single,
            n_entries: arrangement.order.len(),
            n_rows: arrangement.n_rows,
            longest: arrangement.longest,
        }
    }
}

/// Rows that products are made with: few sizes, so that few shapes have to be planned. Rows beyond the step's hold
/// whatever they hold and nobody reads what becomes of them.
pub(super) fn padded(n_rows: usize) -> usize {
    match n_rows {
        0..=16 => n_rows,
        17..=256 => n_rows.next_multiple_of(16),
        _ => n_rows.next_multiple_of(128),
    }
}

impl CudaModel {
    /// Embedding and all layers: the residual stream of every row.
    pub(super) fn issue_layers(&self, step: Step, extent: Extent) -> Result<(), GpuError> {
        self.issue_embedding(step, extent)?;
        self.issue_range(step, extent, 0..self.weights.layers.len())
    }

    /// The residual stream before the first layer.
    pub(super) fn issue_embedding(&self, step: Step, extent: Extent) -> Result<(), GpuError> {
        let x = self.activations.x.all();
        let table = self.weights.embedding.all();
        self.device.embed(
            self.element,
            step,
            extent.n_rows,
            table,
            x,
            self.config.hidden_size,
        )
    }

    /// Some layers, one after another.
    pub(super) fn issue_range(
        &self,
        step: Step,
        extent: Extent,
        layers: std::ops::Range<usize>,
    ) -> Result<(), GpuError> {
        for index in layers {
            let layer = &self.weights.layers[index];
            self.issue_attention(&self.device, step, extent, index, layer)?;
            self.issue_mlp(&self.device, extent, layer)?;
        }
        Ok(())
    }

    fn issue_attention(
        &self,
        device: &Device,
        step: Step,
        extent: Extent,
        index: usize,
        layer: &LayerWeights,
    ) -> Result<(), GpuError> {
        let (element, a, shape) = (self.element, &self.activations, &layer.shape);
        let hidden = self.config.hidden_size;
        let rows = padded(extent.n_rows);
        self.issue_norm(a.x.all(), &layer.input_norm, extent.n_rows)?;
        let width = shape.q_width() + 2 * shape.kv_width();
        let pack = product(element, &layer.pack, width, hidden);
        device.multiply(&pack, a.normed.all(), a.packed.all(), rows, Output::Store)?;

        let cache = self.caches.shape(index, shape);
        let Some(angles) = self.weights.angles_of(shape.head_dim) else {
            unreachable!("there are angles for every layer's heads");
        };
        let conv = ConvLayer {
            packed: a.packed.all(),
            fresh: a.fresh.all(),
            carry: self.caches.carry(index).all(),
            taps: layer.taps.all(),
            angles: angles.all(),
            n_heads: shape.n_heads,
            n_taps: self.config.conv_window,
        };
        device.conv_rope(element, step, extent.n_rows, &cache, &conv)?;
        let attention = Attention {
            element,
            cache,
            packed: a.packed.all(),
            fresh: a.fresh.all(),
            out: a.attended.all(),
            n_heads: shape.n_heads,
            scratch: a.parts.all(),
        };
        device.attend_decode(step, extent.n_single, &attention)?;
        if extent.n_single < extent.n_rows {
            let chunks = (extent.n_single, extent.n_rows);
            let entries = (extent.n_single, extent.n_entries);
            device.attend_prefill(step, entries, chunks, extent.longest, &attention)?;
            device.commit(element, step, chunks, &cache, &conv)?;
        }
        let out = product(element, &layer.out, hidden, shape.q_width());
        device.multiply(&out, a.attended.all(), a.x.all(), rows, Output::AddF32)
    }

    fn issue_mlp(&self, device: &Device, extent: Extent, layer: &LayerWeights) -> Result<(), GpuError> {
        let a = &self.activations;
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let rows = padded(extent.n_rows);
        self.issue_norm(a.x.all(), &layer.post_norm, extent.n_rows)?;
        let gate_up = product(self.element, &layer.gate_up, inner, hidden);
        device.multiply_swiglu(&gate_up, a.normed.all(), a.gate_up.all(), a.act.all(), rows)?;
        let down = product(self.element, &layer.down, hidden, inner);
        device.multiply(&down, a.act.all(), a.x.all(), rows, Output::AddF32)
    }

    fn issue_norm(
        &self,
        x: Span<'_>,
        weight: &baichuan_kernels::cuda::Buffer,
        n_rows: usize,
    ) -> Result<(), GpuError> {
        let shape = (n_rows, self.config.hidden_size);
        let eps = self.config.rms_norm_eps as f32;
        let normed = self.activations.normed.all();
        self.device
            .rms_norm(self.element, x, weight.all(), normed, None, None, shape, eps)
    }

    /// Final norm of the rows `rows` names (without: of the first `n`), at most [`HEAD_ROWS`].
    pub(super) fn issue_final_norm(&self, rows: Option<Span<'_>>, n: usize) -> Result<(), GpuError> {
        debug_assert!(n <= HEAD_ROWS);
        let a = &self.activations;
        self.device.rms_norm(
            self.element,
            a.x.all(),
            self.weights.final_norm.all(),
            a.hidden.all(),
            Some(a.hidden_f32.all()),
            rows,
            (n, self.config.hidden_size),
            self.config.rms_norm_eps as f32,
        )
    }

    /// Logits and most likely tokens of the first `n` rows after the final norm.
    pub(super) fn issue_head(&self, n: usize) -> Result<(), GpuError> {
        let a = &self.activations;
        let vocab = self.config.vocab_size;
        let head = product(self.element, &self.weights.head, vocab, self.config.hidden_size);
        let rows = padded(n).min(HEAD_ROWS);
        self.device
            .multiply(&head, a.hidden.all(), a.logits.all(), rows, Output::StoreF32)?;
        self.device.argmax(a.logits.all(), a.chosen.all(), n, vocab)
    }
}
