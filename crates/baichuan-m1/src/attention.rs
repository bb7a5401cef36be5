//! The attention of one layer, global or sliding: project, convolve, rotate, attend, project back.
//!
//! The two kinds of layer run the same code. They differ in head geometry, in how far a query sees, and in whether
//! blocks are pages or a ring, all of which is data.

use std::sync::Arc;

use baichuan_kernels::{Attention, Threads, attend};
use candle_core::{Result, Tensor};
use mistralrs_quant::QuantMethod;

use crate::cache::LayerCache;
use crate::config::LayerShape;
use crate::conv::{Convolution, RawRows};
use crate::host;
use crate::step::Step;

/// Rows that a thread takes at a time.
const ROWS_PER_TASK: usize = 8;

/// Attention of one layer.
pub(crate) struct HybridAttention {
    pub(crate) shape: LayerShape,
    /// `W_pack`: queries, keys and values in one product, `[q_width + 2 · kv_width, hidden]`.
    pub(crate) pack: Arc<dyn QuantMethod>,
    /// `[hidden, q_width]`.
    pub(crate) out: Arc<dyn QuantMethod>,
    pub(crate) conv_k: Convolution,
    pub(crate) conv_v: Convolution,
    /// Taps of both convolutions.
    pub(crate) conv_window: usize,
}

/// Queries, keys and values of a step, as attention takes them.
struct Projected {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl HybridAttention {
    /// `x`: `[tokens, hidden]`, normalised; gives `[tokens, hidden]`. Writes the new keys and values to `cache` and
    /// moves its raw rows on.
    pub(crate) fn forward(
        &self,
        threads: &Threads,
        x: &Tensor,
        step: &Step<'_>,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let packed = self.pack.forward(x)?;
        let Projected { q, k, v } =
            host::with_values(&packed, |packed| self.project(threads, packed, step, cache))??;
        let spans = step.spans(cache.layout);
        let attention = Attention {
            q_heads: self.shape.n_heads,
            scale: 1.0 / (self.shape.head_dim as f32).sqrt(),
            q: &q,
            k: &k,
            v: &v,
            spans: &spans,
        };
        let mut mixed = vec![0.0; q.len()];
        attend(threads, &mut cache.kv, &attention, &mut mixed);
        self.out.forward(&host::rows(mixed, self.shape.q_width())?)
    }

    /// Takes the rows of `W_pack` apart, convolves keys and values, rotates queries and keys.
    fn project(
        &self,
        threads: &Threads,
        packed: &[f32],
        step: &Step<'_>,
        cache: &mut LayerCache,
    ) -> Result<Projected> {
        let (q_width, kv_width, head_dim) =
            (self.shape.q_width(), self.shape.kv_width(), self.shape.head_dim);
        let row_width = q_width + 2 * kv_width;
        let n_tokens = step.n_tokens();
        let Some(rotation) = step.rotation(head_dim) else {
            candle_core::bail!("the step has no angles for heads of width {head_dim}")
        };
        let mut projected = Projected {
            q: vec![0.0; n_tokens * q_width],
            k: vec![0.0; n_tokens * kv_width],
            v: vec![0.0; n_tokens * kv_width],
        };
        for (entry, rows) in step.entries() {
            let slot = entry.slot.0 as usize;
            let packed = &packed[rows.start * row_width..rows.end * row_width];
            let raw_k = |t: usize| &packed[t * row_width + q_width..][..kv_width];
            let raw_v = |t: usize| &packed[t * row_width + q_width + kv_width..][..kv_width];
            let q = &mut projected.q[rows.start * q_width..rows.end * q_width];
            let k = &mut projected.k[rows.start * kv_width..rows.end * kv_width];
            let v = &mut projected.v[rows.start * kv_width..rows.end * kv_width];
            let (raw_keys, raw_values) = (&cache.raw_keys, &cache.raw_values);
            let chunks = q
                .chunks_mut(ROWS_PER_TASK * q_width)
                .zip(k.chunks_mut(ROWS_PER_TASK * kv_width))
                .zip(v.chunks_mut(ROWS_PER_TASK * kv_width));
            threads.each(chunks.enumerate().collect(), |(chunk, ((q, k), v))| {
                let of_token = q
                    .chunks_exact_mut(q_width)
                    .zip(k.chunks_exact_mut(kv_width))
                    .zip(v.chunks_exact_mut(kv_width));
                for (i, ((q, k), v)) in of_token.enumerate() {
                    let t = chunk * ROWS_PER_TASK + i;
                    q.copy_from_slice(&packed[t * row_width..][..q_width]);
                    rotation.rotate(rows.start + t, q);
                    self.conv_k
                        .apply(|tap| self.tapped(raw_keys, slot, t, tap, raw_k), k);
                    rotation.rotate(rows.start + t, k);
                    self.conv_v
                        .apply(|tap| self.tapped(raw_values, slot, t, tap, raw_v), v);
                }
            });
            cache.raw_keys.advance(slot, rows.len(), raw_k);
            cache.raw_values.advance(slot, rows.len(), raw_v);
        }
        Ok(projected)
    }

    /// The raw row that a tap falls on for token `t` of an entry: one of the entry's own, or a carried one.
    fn tapped<'r, 'p: 'r>(
        &self,
        carried: &'r RawRows,
        slot: usize,
        t: usize,
        tap: usize,
        own: impl Fn(usize) -> &'p [f32],
    ) -> &'r [f32] {
        let n_carried = self.conv_window - 1;
        match (t + tap).checked_sub(n_carried) {
            Some(t) => own(t),
            None => carried.row(slot, t + tap),
        }
    }
}
