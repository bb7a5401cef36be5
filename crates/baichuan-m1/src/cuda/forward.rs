//! The forward pass: what is issued to the device for one step.

use baichuan_kernels::cuda::{
    Attention, Buffer, Chunks, ConvLayer, Few, FewRows, GpuError, Output, PendingNorm, Product, Rows, Span,
    Step,
};

use super::memory::HEAD_ROWS;
use super::weights::{DeviceMatrix, LayerWeights, product};
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
    /// All that is wanted of the step are so many rows, each the last of an entry: the model's last layer computes keys
    /// and values of every row, and all else of these alone.
    pub(super) ends: Option<usize>,
}

impl Extent {
    /// Single tokens only.
    pub(super) fn single(n: usize) -> Self {
        Self {
            n_single: n,
            n_entries: n,
            n_rows: n,
            longest: 1,
            ends: None,
        }
    }

    pub(super) fn of(arrangement: &Arrangement) -> Self {
        Self {
            n_single: arrangement.n_single,
            n_entries: arrangement.order.len(),
            n_rows: arrangement.n_rows,
            longest: arrangement.longest,
            ends: None,
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

    /// Some layers, one after another; the last one is the model's where the extent has `ends`.
    pub(super) fn issue_range(
        &self,
        step: Step,
        extent: Extent,
        layers: std::ops::Range<usize>,
    ) -> Result<(), GpuError> {
        let few = self.is_few(extent);
        let end = layers.end;
        let mut is_first = true;
        for index in layers {
            let layer = &self.weights.layers[index];
            if few {
                let next = (index + 1 < end).then(|| self.weights.layers[index + 1].input_norm.all());
                self.issue_few(step, extent, index, is_first, next)?;
            } else {
                let ends = extent.ends.filter(|_| index + 1 == end);
                self.issue_many(step, Extent { ends, ..extent }, index, layer)?;
            }
            is_first = false;
        }
        Ok(())
    }

    /// Whether the kernels for few rows do all products of a layer: then norms are part of them.
    fn is_few(&self, extent: Extent) -> bool {
        self.weights.layers.iter().all(|layer| {
            self.products(layer)
                .iter()
                .all(|product| self.device.suits_few(product, extent.n_rows))
        })
    }

    fn product<'a>(&'a self, matrix: &'a DeviceMatrix, n_out: usize, n_in: usize) -> Product<'a> {
        product(self.element, matrix, &self.activations.dequantized, n_out, n_in)
    }

    /// W_pack, o_proj, gate and up, down.
    fn products<'a>(&'a self, layer: &'a LayerWeights) -> [Product<'a>; 4] {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let (q, kv) = (layer.shape.q_width(), layer.shape.kv_width());
        let of = |matrix, n_out, n_in| self.product(matrix, n_out, n_in);
        [
            of(&layer.pack, q + 2 * kv, hidden),
            of(&layer.out, hidden, q),
            of(&layer.gate_up, inner, hidden),
            of(&layer.down, hidden, inner),
        ]
    }

    fn pending_norm(&self) -> PendingNorm<'_> {
        PendingNorm {
            scaled: self.activations.normed.all(),
            squares: self.activations.squares.all(),
            eps: self.config.rms_norm_eps as f32,
        }
    }

    /// A layer of a step of few rows. The first of some makes its own norm, which any other finds prepared by the one
    /// before; `next` is the weight of the norm to be prepared.
    fn issue_few(
        &self,
        step: Step,
        extent: Extent,
        index: usize,
        is_first: bool,
        next: Option<Span<'_>>,
    ) -> Result<(), GpuError> {
        let (device, a, norm) = (&self.device, &self.activations, self.pending_norm());
        let layer = &self.weights.layers[index];
        let [pack, out, gate_up, down] = self.products(layer);
        let few = |product, x, y| FewRows {
            product,
            n_rows: extent.n_rows,
            x,
            y,
        };
        let x = if is_first {
            let (weight, shape) = (layer.input_norm.all(), (extent.n_rows, pack.n_in));
            device.rms_norm(
                self.element,
                a.x.all(),
                weight,
                a.normed.all(),
                None,
                None,
                shape,
                norm.eps,
            )?;
            Few::Plain(a.normed.all())
        } else {
            Few::Normed(norm)
        };
        device.multiply_few(&few(pack, x, a.packed.all()), Output::Store)?;
        self.issue_attention(step, extent, index, layer)?;
        let out = few(out, Few::Plain(a.attended.all()), a.x.all());
        device.add_few(&out, layer.post_norm.all(), &norm)?;
        device.swiglu_few(&few(gate_up, Few::Normed(norm), a.act.all()))?;
        let down = few(down, Few::Plain(a.act.all()), a.x.all());
        match next {
            Some(weight) => device.add_few(&down, weight, &norm),
            None => device.multiply_few(&down, Output::AddF32),
        }
    }

    /// A layer of any step.
    fn issue_many(
        &self,
        step: Step,
        extent: Extent,
        index: usize,
        layer: &LayerWeights,
    ) -> Result<(), GpuError> {
        let (device, a, rows) = (&self.device, &self.activations, padded(extent.n_rows));
        let pack = self.products(layer)[0];
        let normed = self.issue_norm((&pack, rows), a.x.all(), &layer.input_norm, extent.n_rows)?;
        device.multiply(&pack, normed, a.packed.all(), rows, Output::Store)?;
        self.issue_attention(step, extent, index, layer)?;
        let Some(n) = extent.ends else {
            return self.issue_rest(layer, a.attended.all(), a.x.all(), extent.n_rows);
        };
        if n == 0 {
            return Ok(());
        }
        // Room that the final norm and the head use next.
        let (attended, x) = (a.hidden.all(), a.hidden_f32.all());
        let (width, hidden) = (layer.shape.q_width(), self.config.hidden_size);
        let ends = self.step.wanted(0, n);
        device.gather_rows(a.attended.all(), attended, ends, width * self.element.size())?;
        device.gather_rows(a.x.all(), x, ends, hidden * 4)?;
        self.issue_rest(layer, attended, x, n)?;
        device.scatter_rows(x, a.x.all(), ends, hidden * 4)
    }

    /// A layer from what attention made to the residual stream `x`.
    fn issue_rest(
        &self,
        layer: &LayerWeights,
        attended: Span<'_>,
        x: Span<'_>,
        n_rows: usize,
    ) -> Result<(), GpuError> {
        let (device, a, rows) = (&self.device, &self.activations, padded(n_rows));
        let [_, out, gate_up, down] = self.products(layer);
        device.multiply(&out, Rows::Plain(attended), x, rows, Output::AddF32)?;
        let both = Product {
            n_out: 2 * gate_up.n_out,
            ..gate_up
        };
        let normed = self.issue_norm((&both, rows), x, &layer.post_norm, n_rows)?;
        let act = device.multiply_swiglu(&gate_up, normed, a.gate_up.all(), a.act.all(), (&down, rows))?;
        device.multiply(&down, act, x, rows, Output::AddF32)
    }

    /// Between the products W_pack and o_proj.
    fn issue_attention(
        &self,
        step: Step,
        extent: Extent,
        index: usize,
        layer: &LayerWeights,
    ) -> Result<(), GpuError> {
        let (device, element, a, shape) = (&self.device, self.element, &self.activations, &layer.shape);
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
        let attention = Attention {
            element,
            cache,
            conv,
            out: a.attended.all(),
            scratch: a.parts.all(),
        };
        device.attend_decode(step, extent.n_single, &attention)?;
        if extent.n_single < extent.n_rows {
            let chunks = (extent.n_single, extent.n_rows);
            let entries = (extent.n_single, extent.n_entries);
            device.conv_rope(element, step, chunks, &cache, &conv)?;
            match extent.ends {
                Some(0) => {}
                Some(_) => device.attend_prefill(step, entries, chunks, Chunks::Ends, &attention)?,
                None => {
                    let longest = extent.longest;
                    device.attend_prefill(step, entries, chunks, Chunks::Whole { longest }, &attention)?;
                }
            }
            device.commit(element, step, chunks, &cache, &conv)?;
        }
        Ok(())
    }

    /// The norm before a product.
    fn issue_norm(
        &self,
        next: (&Product<'_>, usize),
        x: Span<'_>,
        weight: &Buffer,
        n_rows: usize,
    ) -> Result<Rows<'_>, GpuError> {
        let (y, eps) = (self.activations.normed.all(), self.config.rms_norm_eps as f32);
        self.device.rms_norm_for(next, x, weight.all(), y, n_rows, eps)
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
        let head = self.product(&self.weights.head, vocab, self.config.hidden_size);
        let rows = padded(n).min(HEAD_ROWS);
        self.device.multiply(
            &head,
            Rows::Plain(a.hidden.all()),
            a.logits.all(),
            rows,
            Output::StoreF32,
        )?;
        self.device.argmax(a.logits.all(), a.chosen.all(), n, vocab)
    }
}
