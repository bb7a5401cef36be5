//! The attention of one layer: project, convolve, rotate, attend, project back.

use std::sync::Arc;

use baichuan_engine::BlockId;
use baichuan_engine::model::StepEntry;
use candle_core::{D, DType, Result, Tensor};
use mistralrs_quant::QuantMethod;

use super::layer::LayerCache;
use crate::config::{LayerShape, Span};
use crate::step::Step;

/// Scores that a tile of queries may have: 256 MiB of f32.
const SCORES_AT_ONCE: usize = 64 << 20;

/// Attention of one layer, global or sliding.
pub(super) struct Attention {
    pub(super) shape: LayerShape,
    /// Rows of a sequence's ring; 0 where blocks are pages.
    pub(super) ring_rows: usize,
    /// `W_pack`: queries, keys and values in one product.
    pub(super) pack: Arc<dyn QuantMethod>,
    /// `[hidden, q_width]`.
    pub(super) out: Arc<dyn QuantMethod>,
    /// `[conv_window, 2 · kv_width]` f32: of keys, then values, each head's tap over its whole width; oldest token first.
    pub(super) taps: Tensor,
    pub(super) conv_window: usize,
}

/// Rows of a step, after convolution and rotation: `[rows, heads, head_dim]` in the cache's type.
struct Projected {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Attention {
    /// `x`: `[rows, hidden]`, normalised; gives `[rows, hidden]` f32. Writes the new keys and values to `cache` and moves
    /// its raw rows on.
    pub(super) fn forward(&self, x: &Tensor, step: &Step<'_>, cache: &mut LayerCache) -> Result<Tensor> {
        let packed = self.pack.forward_autocast(x)?.to_dtype(DType::F32)?;
        let projected = self.project(&packed, step, cache)?;
        let mixed = self.mix(&projected, step, cache)?;
        let mixed = mixed.reshape((step.n_tokens(), self.shape.q_width()))?;
        self.out
            .forward_autocast(&mixed.to_dtype(x.dtype())?)?
            .to_dtype(DType::F32)
    }

    fn project(&self, packed: &Tensor, step: &Step<'_>, cache: &mut LayerCache) -> Result<Projected> {
        let shape = &self.shape;
        let (n, d) = (step.n_tokens(), shape.head_dim);
        let (q_width, kv_width) = (shape.q_width(), shape.kv_width());
        let raw = packed.narrow(1, q_width, 2 * kv_width)?.contiguous()?;
        let convolved = self.convolve(&raw, step, cache)?;
        let Some(rotation) = step.rotation(d) else {
            candle_core::bail!("the step has no angles for heads of width {d}")
        };
        let (cos, sin) = rotation.tables();
        let angles = |table: &[f32]| Tensor::from_slice(table, (n, d / 2), packed.device());
        let (cos, sin) = (angles(cos)?, angles(sin)?);
        let dtype = cache.kv.keys.dtype();
        let rotated = |rows: Tensor, heads: usize| -> Result<Tensor> {
            let rows = rows.reshape((1, n, heads, d))?.transpose(1, 2)?.contiguous()?;
            let rows = candle_nn::rotary_emb::rope(&rows, &cos, &sin)?;
            rows.squeeze(0)?.transpose(0, 1)?.contiguous()?.to_dtype(dtype)
        };
        Ok(Projected {
            q: rotated(packed.narrow(1, 0, q_width)?.contiguous()?, shape.n_heads)?,
            k: rotated(convolved.narrow(1, 0, kv_width)?.contiguous()?, shape.n_kv_heads)?,
            v: convolved
                .narrow(1, kv_width, kv_width)?
                .contiguous()?
                .reshape((n, shape.n_kv_heads, d))?
                .to_dtype(dtype)?,
        })
    }

    /// Keys and values mixed with the ones before them, see [`crate::conv`]; `raw` is `[rows, 2 · kv_width]` f32.
    fn convolve(&self, raw: &Tensor, step: &Step<'_>, cache: &mut LayerCache) -> Result<Tensor> {
        let n_carried = self.conv_window - 1;
        let mut convolved = Vec::new();
        for (entry, rows) in step.entries() {
            let slot = entry.slot.0 as usize;
            let own = raw.narrow(0, rows.start, rows.len())?;
            let all = match n_carried {
                0 => own,
                _ => Tensor::cat(&[&cache.carry[slot], &own], 0)?,
            };
            let mut sum: Option<Tensor> = None;
            for tap in 0..self.conv_window {
                let term = all
                    .narrow(0, tap, rows.len())?
                    .broadcast_mul(&self.taps.narrow(0, tap, 1)?)?;
                sum = Some(match sum {
                    Some(sum) => (sum + term)?,
                    None => term,
                });
            }
            convolved.extend(sum);
            if n_carried > 0 {
                cache.carry[slot] = all.narrow(0, rows.len(), n_carried)?.copy()?;
            }
        }
        Tensor::cat(&convolved, 0)
    }

    /// Attention of all rows, in the order of the step: `[rows, heads, head_dim]` f32.
    fn mix(&self, projected: &Projected, step: &Step<'_>, cache: &LayerCache) -> Result<Tensor> {
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let is_single = |entry: &StepEntry<'_>| entry.tokens.len() == 1 && self.ring_is_window();
        let (mut rows_of_singles, mut tables, mut lens, mut places) = (vec![], vec![], vec![], vec![]);
        let mut parts: Vec<Option<Tensor>> = Vec::new();
        for (entry, rows) in step.entries() {
            let blocks = self.blocks(entry);
            if is_single(entry) {
                rows_of_singles.push(rows.start as u32);
                tables.push(blocks);
                lens.push(self.n_cached(entry.start + 1));
                places.push(self.place(blocks, entry.start, cache));
                parts.push(None);
                continue;
            }
            // A chunk attends before it overwrites.
            let of = |all: &Tensor| all.narrow(0, rows.start, rows.len());
            let (q, k, v) = (of(&projected.q)?, of(&projected.k)?, of(&projected.v)?);
            parts.push(Some(self.mix_chunk(&q, &k, &v, entry, cache)?));
            // Of a chunk longer than its ring the last rows stay.
            let kept = if self.ring_rows > 0 {
                rows.len().min(self.ring_rows)
            } else {
                rows.len()
            };
            let first = rows.len() - kept;
            let places: Vec<usize> = (first..rows.len())
                .map(|i| self.place(blocks, entry.start + i, cache))
                .collect();
            cache
                .kv
                .write(&k.narrow(0, first, kept)?, &v.narrow(0, first, kept)?, &places)?;
        }
        if rows_of_singles.is_empty() {
            return Tensor::cat(&parts.into_iter().flatten().collect::<Vec<_>>(), 0);
        }
        let rows = Tensor::new(rows_of_singles, projected.q.device())?;
        let of = |all: &Tensor| all.index_select(&rows, 0);
        cache.kv.write(&of(&projected.k)?, &of(&projected.v)?, &places)?;
        let singles = cache.kv.attend_each(&of(&projected.q)?, &tables, &lens, scale)?;
        let mut next = 0;
        let parts = parts.into_iter().map(|part| match part {
            Some(part) => Ok(part),
            None => {
                next += 1;
                singles.narrow(0, next - 1, 1)
            }
        });
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// A chunk's queries over what was cached before it and over itself.
    fn mix_chunk(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        entry: &StepEntry<'_>,
        cache: &LayerCache,
    ) -> Result<Tensor> {
        let (n, start) = (entry.tokens.len(), entry.start);
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        let n_cached = self.n_cached(start);
        // Positions of the cached rows: in a ring, row r holds the last one before the chunk that falls on it.
        let laps = |row: usize| (start - 1 - row).checked_div(self.ring_rows).unwrap_or(0);
        let cached = (0..n_cached).map(|row| row + laps(row) * self.ring_rows);
        let keys: Vec<usize> = cached.chain(start..start + n).collect();
        let (k, v) = if n_cached > 0 {
            let (old_k, old_v) = cache.kv.gather(self.blocks(entry), n_cached)?;
            (Tensor::cat(&[&old_k, k], 0)?, Tensor::cat(&[&old_v, v], 0)?)
        } else {
            (k.clone(), v.clone())
        };
        let tile = (SCORES_AT_ONCE / (keys.len() * self.shape.n_heads)).clamp(1, n);
        let mut parts = Vec::new();
        for first in (0..n).step_by(tile) {
            let queries = tile.min(n - first);
            let mut mask = vec![0f32; queries * keys.len()];
            for (i, row) in mask.chunks_exact_mut(keys.len()).enumerate() {
                let query = start + first + i;
                let lowest = match self.shape.span {
                    Span::Global => 0,
                    Span::Sliding { window } => (query + 1).saturating_sub(window),
                };
                for (hidden, key) in row.iter_mut().zip(&keys) {
                    if *key > query || *key < lowest {
                        *hidden = f32::NEG_INFINITY;
                    }
                }
            }
            let mask = Tensor::from_vec(mask, (queries, keys.len()), q.device())?;
            parts.push(attend(&q.narrow(0, first, queries)?, &k, &v, Some(&mask), scale)?);
        }
        Tensor::cat(&parts, 0)
    }

    /// Whether every row of a ring is in sight of the next token, so that single queries need no mask.
    fn ring_is_window(&self) -> bool {
        match self.shape.span {
            Span::Global => true,
            Span::Sliding { window } => self.ring_rows == window,
        }
    }

    /// Rows in the cache of a sequence of so many tokens.
    fn n_cached(&self, n: usize) -> usize {
        if self.ring_rows > 0 {
            n.min(self.ring_rows)
        } else {
            n
        }
    }

    fn blocks<'a>(&self, entry: &StepEntry<'a>) -> &'a [u32] {
        BlockId::as_u32s(if self.ring_rows > 0 {
            entry.window
        } else {
            entry.global
        })
    }

    /// Where a position's key and value are, see [`super::paged::PagedKv::write`].
    fn place(&self, blocks: &[u32], position: usize, cache: &LayerCache) -> usize {
        let row = if self.ring_rows > 0 {
            position % self.ring_rows
        } else {
            position
        };
        let block_tokens = cache.kv.block_tokens;
        blocks[row / block_tokens] as usize * block_tokens + row % block_tokens
    }
}

/// `softmax(q · kᵀ · scale + mask) · v`: `q` `[n, heads, d]`, `k` and `v` `[m, kv_heads, d]`, `mask` `[n, m]`; gives
/// `[n, heads, d]` f32. Products in the operands' type, the softmax in f32.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    scale: f32,
) -> Result<Tensor> {
    let (n, heads, d) = q.dims3()?;
    let (m, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    // Query heads that share a key head are rows of one product.
    let q = q
        .reshape((n, kv_heads, group, d))?
        .permute((1, 2, 0, 3))?
        .contiguous()?;
    let q = q.reshape((kv_heads, group * n, d))?;
    let k = k.permute((1, 2, 0))?.contiguous()?;
    let v = v.transpose(0, 1)?.contiguous()?;
    let mut scores = (q.matmul(&k)?.to_dtype(DType::F32)? * f64::from(scale))?;
    if let Some(mask) = mask {
        scores = scores
            .reshape((kv_heads, group, n, m))?
            .broadcast_add(mask)?
            .reshape((kv_heads, group * n, m))?;
    }
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
    let mixed = weights.matmul(&v)?.to_dtype(DType::F32)?;
    let mixed = mixed.reshape((kv_heads, group, n, d))?.permute((2, 0, 1, 3))?;
    mixed.contiguous()?.reshape((n, heads, d))
}
