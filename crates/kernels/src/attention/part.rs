//! The arithmetic: one split of the keys for the queries of one unit, and the merging of splits.

use std::ops::Range;

use super::source::Source;
use super::{Attention, SPLIT, TILE, Unit};
use crate::buffer::Buffer;
use crate::element::Element;
use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::Threads;

/// A softmax over some keys, not yet divided: for each query row the largest score, the sum of
/// `e^(score - largest)`, and the sum of the values so weighted. Rows of values are padded to whole vectors.
pub(super) struct State {
    largest: Vec<f32>,
    sum: Vec<f32>,
    weighted: Buffer<f32>,
    width: usize,
}

impl State {
    pub(super) fn new(n_rows: usize, head_dim: usize) -> Self {
        let width = head_dim.next_multiple_of(LANES);
        let (largest, sum) = (vec![f32::NEG_INFINITY; n_rows], vec![0.0; n_rows]);
        Self {
            largest,
            sum,
            weighted: Buffer::zeroed(n_rows * width),
            width,
        }
    }

    /// Back to no keys.
    pub(super) fn reset(&mut self) {
        self.largest.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.weighted.fill(0.0);
    }

    /// A row's sum of weights and weighted sum.
    pub(super) fn row(&self, row: usize) -> (f32, &[f32]) {
        (self.sum[row], &self.weighted[row * self.width..][..self.width])
    }
}

/// Brings the keys of `part`, which come after those of `total`, into it.
pub(super) struct Merge<'a> {
    pub(super) total: &'a mut State,
    pub(super) part: &'a State,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Merge { total, part } = self;
        let width = total.width;
        for row in 0..total.sum.len() {
            if part.sum[row] == 0.0 {
                continue; // no key of the split is visible to this query
            }
            let values = total.weighted[row * width..][..width].chunks_exact_mut(LANES);
            let added = part.weighted[row * width..][..width].chunks_exact(LANES);
            if total.sum[row] == 0.0 {
                (total.largest[row], total.sum[row]) = (part.largest[row], part.sum[row]);
                values
                    .zip(added)
                    .for_each(|(total, part)| total.copy_from_slice(part));
                continue;
            }
            let largest = total.largest[row].max(part.largest[row]);
            let keep = s.exp(s.splat(total.largest[row] - largest));
            let gain = s.exp(s.splat(part.largest[row] - largest));
            for (total, part) in values.zip(added) {
                // SAFETY: both chunks have sixteen values.
                unsafe {
                    let gained = s.mul(s.load(part.as_ptr()), gain);
                    s.store(total.as_mut_ptr(), s.fma(s.load(total.as_ptr()), keep, gained));
                }
            }
            let sums = s.fma(s.splat(total.sum[row]), keep, s.mul(s.splat(part.sum[row]), gain));
            total.largest[row] = largest;
            total.sum[row] = s.reduce_max(sums);
        }
    }
}

/// Computes the keys of one split for one unit, into a state of no keys.
pub(super) fn compute<E: Element>(
    threads: &Threads,
    attention: &Attention<'_>,
    source: &Source<'_, E>,
    unit: &Unit<'_>,
    split: usize,
    state: &mut State,
) {
    let (head_dim, width) = (source.shape.head_dim, state.width);
    let group = attention.q_heads / source.shape.kv_heads;
    let (first, last) = (unit.visible(unit.tokens.start), unit.visible(unit.tokens.end - 1));
    let seen = first.start.max(split * SPLIT)..last.end.min((split + 1) * SPLIT);

    let mut queries = Buffer::<f32>::zeroed(unit.n_rows(attention, &source.shape) * width);
    for (i, token) in unit.tokens.clone().enumerate() {
        let q = &attention.q[unit.query(attention, &source.shape, token)..][..group * head_dim];
        let padded = queries[i * group * width..].chunks_exact_mut(width);
        q.chunks_exact(head_dim)
            .zip(padded)
            .for_each(|(q, to)| to[..head_dim].copy_from_slice(q));
    }
    let (mut k, mut v) = (Buffer::zeroed(TILE * width), Buffer::zeroed(TILE * width));
    let mut scores = Buffer::zeroed(group * TILE);
    for tile in seen.start / TILE..seen.end.div_ceil(TILE) {
        let positions = seen.start.max(tile * TILE)..seen.end.min((tile + 1) * TILE);
        threads.run(Widen {
            source,
            unit,
            positions,
            tile,
            k: &mut k,
            v: &mut v,
        });
        let rows = Rows {
            queries: &queries,
            k: &k,
            v: &v,
        };
        threads.run(TileOfKeys {
            unit,
            tile,
            rows,
            scale: attention.scale,
            scores: &mut scores,
            state,
        });
    }
}

/// A tile's keys and values as f32, in rows padded to whole vectors.
struct Widen<'a, E> {
    source: &'a Source<'a, E>,
    unit: &'a Unit<'a>,
    positions: Range<usize>,
    tile: usize,
    k: &'a mut [f32],
    v: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.k.len() / TILE;
        for position in self.positions {
            let (k, v) = self.source.row(self.unit, position);
            let to = (position - self.tile * TILE) * width;
            for (from, to) in [(k, &mut self.k[to..][..width]), (v, &mut self.v[to..][..width])] {
                let whole = from.len() / LANES * LANES;
                for i in (0..whole).step_by(LANES) {
                    // SAFETY: sixteen values from `i` on are in both.
                    unsafe { s.store(to.as_mut_ptr().add(i), E::load(s, from.as_ptr().add(i))) };
                }
                to[whole..]
                    .iter_mut()
                    .zip(&from[whole..])
                    .for_each(|(to, from)| *to = from.to_f32());
            }
        }
    }
}

/// Rows of f32, padded to whole vectors.
struct Rows<'a> {
    /// `[tokens, group, width]`
    queries: &'a [f32],
    /// `[TILE, width]`
    k: &'a [f32],
    /// `[TILE, width]`
    v: &'a [f32],
}

/// One tile of keys for all queries of a unit.
struct TileOfKeys<'a> {
    unit: &'a Unit<'a>,
    tile: usize,
    rows: Rows<'a>,
    scale: f32,
    scores: &'a mut [f32],
    state: &'a mut State,
}

impl Kernel for TileOfKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let TileOfKeys {
            unit,
            tile,
            rows,
            scale,
            scores,
            state,
        } = self;
        let (width, group) = (state.width, scores.len() / TILE);
        for (i, token) in unit.tokens.clone().enumerate() {
            let visible = unit.visible(token);
            let keys = visible.start.max(tile * TILE)..visible.end.min((tile + 1) * TILE);
            if keys.is_empty() {
                continue;
            }
            let keys = keys.start - tile * TILE..keys.end - tile * TILE;
            let heads = i * group * width..(i + 1) * group * width;
            score(
                s,
                &rows.queries[heads.clone()],
                rows.k,
                width,
                keys.clone(),
                scale,
                scores,
            );
            soften(s, state, i * group, scores);
            weigh(s, scores, rows.v, width, keys, &mut state.weighted[heads]);
        }
    }
}

/// Scores of a token's query heads, `[heads, TILE]`; minus infinity for keys it does not see.
#[inline(always)]
fn score<S: Simd>(
    s: S,
    q: &[f32],
    k: &[f32],
    width: usize,
    keys: Range<usize>,
    scale: f32,
    scores: &mut [f32],
) {
    scores.fill(f32::NEG_INFINITY);
    let heads = q.len() / width;
    let mut head = 0;
    while head < heads {
        let n = (heads - head).min(3);
        let (q, scores) = (&q[head * width..], &mut scores[head * TILE..]);
        match n {
            1 => score_heads::<S, 1>(s, q, k, width, keys.clone(), scale, scores),
            2 => score_heads::<S, 2>(s, q, k, width, keys.clone(), scale, scores),
            _ => score_heads::<S, 3>(s, q, k, width, keys.clone(), scale, scores),
        }
        head += n;
    }
}

#[inline(always)]
fn score_heads<S: Simd, const H: usize>(
    s: S,
    q: &[f32],
    k: &[f32],
    width: usize,
    keys: Range<usize>,
    scale: f32,
    scores: &mut [f32],
) {
    let mut key = keys.start;
    while key + 2 <= keys.end {
        dots::<S, H, 2>(s, q, k, width, key, scale, scores);
        key += 2;
    }
    if key < keys.end {
        dots::<S, H, 1>(s, q, k, width, key, scale, scores);
    }
}

/// `H` heads times `K` keys from `key` on.
#[inline(always)]
fn dots<S: Simd, const H: usize, const K: usize>(
    s: S,
    q: &[f32],
    k: &[f32],
    width: usize,
    key: usize,
    scale: f32,
    scores: &mut [f32],
) {
    let (q, k, scores) = (
        &q[..H * width],
        &k[key * width..][..K * width],
        &mut scores[..H * TILE],
    );
    let mut sums = [[s.splat(0.0); K]; H];
    for i in (0..width).step_by(LANES) {
        // SAFETY: `i` is a whole vector of a row, and there are `H` and `K` rows.
        let k: [S::V; K] = std::array::from_fn(|j| unsafe { s.load(k.as_ptr().add(j * width + i)) });
        for h in 0..H {
            // SAFETY: as above.
            let q = unsafe { s.load(q.as_ptr().add(h * width + i)) };
            for j in 0..K {
                sums[h][j] = s.fma(q, k[j], sums[h][j]);
            }
        }
    }
    for h in 0..H {
        for j in 0..K {
            scores[h * TILE + key + j] = s.reduce_add(sums[h][j]) * scale;
        }
    }
}

/// Turns scores into weights `e^(score - largest so far)`, and what the state held into that measure.
#[inline(always)]
fn soften<S: Simd>(s: S, state: &mut State, first_row: usize, scores: &mut [f32]) {
    for (i, scores) in scores.chunks_exact_mut(TILE).enumerate() {
        let row = first_row + i;
        let mut largest = s.splat(f32::NEG_INFINITY);
        for chunk in scores.chunks_exact(LANES) {
            // SAFETY: the chunk has sixteen values.
            largest = s.max(unsafe { s.load(chunk.as_ptr()) }, largest);
        }
        let largest = s.reduce_max(largest);
        if largest > state.largest[row] {
            if state.sum[row] != 0.0 {
                let keep = s.exp(s.splat(state.largest[row] - largest));
                state.sum[row] *= s.reduce_max(keep);
                for chunk in state.weighted[row * state.width..][..state.width].chunks_exact_mut(LANES) {
                    // SAFETY: the chunk has sixteen values.
                    unsafe { s.store(chunk.as_mut_ptr(), s.mul(s.load(chunk.as_ptr()), keep)) };
                }
            }
            state.largest[row] = largest;
        }
        let largest = s.splat(state.largest[row]);
        let mut sum = s.splat(0.0);
        for chunk in scores.chunks_exact_mut(LANES) {
            // SAFETY: the chunk has sixteen values.
            unsafe {
                let weight = s.exp(s.sub(s.load(chunk.as_ptr()), largest));
                s.store(chunk.as_mut_ptr(), weight);
                sum = s.add(sum, weight);
            }
        }
        state.sum[row] += s.reduce_add(sum);
    }
}

/// Adds weighted values, key by key, to each head's row of `out`.
#[inline(always)]
fn weigh<S: Simd>(s: S, weights: &[f32], v: &[f32], width: usize, keys: Range<usize>, out: &mut [f32]) {
    let heads = out.len() / width;
    let mut head = 0;
    while head < heads {
        let n = (heads - head)
            .min(if heads.is_multiple_of(5) { 5 } else { 6 })
            .min(S::ACCUMULATORS);
        let (weights, out) = (&weights[head * TILE..], &mut out[head * width..]);
        match n {
            1 => weigh_heads::<S, 1>(s, weights, v, width, keys.clone(), out),
            2 => weigh_heads::<S, 2>(s, weights, v, width, keys.clone(), out),
            3 => weigh_heads::<S, 3>(s, weights, v, width, keys.clone(), out),
            4 => weigh_heads::<S, 4>(s, weights, v, width, keys.clone(), out),
            5 => weigh_heads::<S, 5>(s, weights, v, width, keys.clone(), out),
            _ => weigh_heads::<S, 6>(s, weights, v, width, keys.clone(), out),
        }
        head += n;
    }
}

#[inline(always)]
fn weigh_heads<S: Simd, const H: usize>(
    s: S,
    weights: &[f32],
    v: &[f32],
    width: usize,
    keys: Range<usize>,
    out: &mut [f32],
) {
    let (weights, out) = (&weights[..H * TILE], &mut out[..H * width]);
    let v = &v[..keys.end * width];
    debug_assert!(keys.end <= TILE);
    for i in (0..width).step_by(LANES) {
        // SAFETY: `i` is a whole vector of a row, and there are `H` rows of `out`.
        let mut sums: [S::V; H] = std::array::from_fn(|h| unsafe { s.load(out.as_ptr().add(h * width + i)) });
        for key in keys.clone() {
            // SAFETY: `v` has a row for each key, and `weights` a value.
            unsafe {
                let v = s.load(v.as_ptr().add(key * width + i));
                for h in 0..H {
                    sums[h] = s.fma(s.splat(*weights.as_ptr().add(h * TILE + key)), v, sums[h]);
                }
            }
        }
        for h in 0..H {
            // SAFETY: as for reading.
            unsafe { s.store(out.as_mut_ptr().add(h * width + i), sums[h]) };
        }
    }
}
