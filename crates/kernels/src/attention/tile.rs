//! The arithmetic of one tile of keys: scores, weights, weighted values.

use std::ops::Range;

use super::part::{State, of_tile};
use super::rows::TileRows;
use super::{TILE, Unit};
use crate::level::Kernel;
use crate::simd::{LANES, Simd};

/// One tile of keys for all queries of a unit.
pub(super) struct TileOfKeys<'a, R> {
    pub(super) unit: &'a Unit<'a>,
    pub(super) tile: usize,
    /// `[tokens, group, width]`
    pub(super) queries: &'a [f32],
    pub(super) k: R,
    pub(super) v: R,
    pub(super) scale: f32,
    pub(super) scores: &'a mut [f32],
    pub(super) state: &'a mut State,
}

impl<R: TileRows> Kernel for TileOfKeys<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, group) = (self.state.width, self.scores.len() / TILE);
        for (i, token) in self.unit.tokens.clone().enumerate() {
            let visible = self.unit.visible(token);
            let keys = of_tile(&visible, self.tile);
            if keys.is_empty() {
                continue;
            }
            let keys = keys.start - self.tile * TILE..keys.end - self.tile * TILE;
            let heads = i * group * width..(i + 1) * group * width;
            let score = Score {
                k: &self.k,
                width,
                keys: keys.clone(),
                scale: self.scale,
            };
            score.heads(s, &self.queries[heads.clone()], self.scores);
            soften(s, self.state, i * group, self.scores);
            let out = &mut self.state.weighted[heads];
            weigh(s, self.scores, &self.v, width, keys, out);
        }
    }
}

/// What scores of a token's query heads are made of, beside the queries.
struct Score<'a, R> {
    k: &'a R,
    width: usize,
    /// The keys that the token sees, counted in the tile.
    keys: Range<usize>,
    scale: f32,
}

impl<R: TileRows> Score<'_, R> {
    /// `[heads, TILE]`; minus infinity for keys that the token does not see.
    #[inline(always)]
    fn heads<S: Simd>(&self, s: S, q: &[f32], scores: &mut [f32]) {
        scores.fill(f32::NEG_INFINITY);
        let heads = q.len() / self.width;
        let most = match S::ACCUMULATORS {
            ..12 => 3,
            _ if heads.is_multiple_of(5) => 5,
            _ => 4,
        };
        let mut head = 0;
        while head < heads {
            let n = (heads - head).min(most);
            let (q, scores, asks) = (&q[head * self.width..], &mut scores[head * TILE..], head == 0);
            match n {
                1 => self.all_keys::<S, 1, 4>(s, q, scores, asks),
                2 => self.all_keys::<S, 2, 4>(s, q, scores, asks),
                3 if S::ACCUMULATORS < 12 => self.all_keys::<S, 3, 2>(s, q, scores, asks),
                3 => self.all_keys::<S, 3, 4>(s, q, scores, asks),
                4 => self.all_keys::<S, 4, 4>(s, q, scores, asks),
                _ => self.all_keys::<S, 5, 4>(s, q, scores, asks),
            }
            head += n;
        }
    }

    /// `H` heads times all keys, `K` of them at a time; asks for the next tile's meanwhile, if so.
    #[inline(always)]
    fn all_keys<S: Simd, const H: usize, const K: usize>(
        &self,
        s: S,
        q: &[f32],
        scores: &mut [f32],
        asks: bool,
    ) {
        let mut key = self.keys.start;
        while key + K <= self.keys.end {
            self.dots::<S, H, K>(s, q, key, scores, asks);
            key += K;
        }
        for key in key..self.keys.end {
            self.dots::<S, H, 1>(s, q, key, scores, asks);
        }
    }

    #[inline(always)]
    fn dots<S: Simd, const H: usize, const K: usize>(
        &self,
        s: S,
        q: &[f32],
        key: usize,
        scores: &mut [f32],
        asks: bool,
    ) {
        let (q, scores) = (&q[..H * self.width], &mut scores[..H * TILE]);
        let mut sums = [[s.splat(0.0); K]; H];
        for i in (0..self.width).step_by(LANES) {
            // SAFETY: `i` is a whole vector of a row, the keys are of the tile, and there are `H` rows of `q`.
            let k: [S::V; K] = std::array::from_fn(|j| unsafe { self.k.load(s, key + j, i) });
            if asks {
                (key..key + K).for_each(|key| self.k.ask_ahead(s, key, i, LANES));
            }
            for h in 0..H {
                // SAFETY: as above.
                let q = unsafe { s.load(q.as_ptr().add(h * self.width + i)) };
                for j in 0..K {
                    sums[h][j] = s.fma(q, k[j], sums[h][j]);
                }
            }
        }
        for h in 0..H {
            let sums = s.reduce_add_each(sums[h]);
            for j in 0..K {
                scores[h * TILE + key + j] = sums[j] * self.scale;
            }
        }
    }
}

/// Turns scores into weights `e^(score - largest so far)`, and what the state held into that measure.
#[inline(always)]
pub(super) fn soften<S: Simd>(s: S, state: &mut State, first_row: usize, scores: &mut [f32]) {
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
fn weigh<S: Simd, R: TileRows>(
    s: S,
    weights: &[f32],
    v: &R,
    width: usize,
    keys: Range<usize>,
    out: &mut [f32],
) {
    let heads = out.len() / width;
    let most = if heads.is_multiple_of(5) { 5 } else { 4 };
    let mut head = 0;
    while head < heads {
        let n = (heads - head).min(most).min(S::ACCUMULATORS);
        let (weights, out) = (&weights[head * TILE..], &mut out[head * width..]);
        let v = Values {
            rows: v,
            width,
            keys: keys.clone(),
            asks: head == 0,
        };
        match n {
            1 => v.heads::<S, 1>(s, weights, out),
            2 => v.heads::<S, 2>(s, weights, out),
            3 => v.heads::<S, 3>(s, weights, out),
            4 => v.heads::<S, 4>(s, weights, out),
            _ => v.heads::<S, 5>(s, weights, out),
        }
        head += n;
    }
}

/// The values that weights of a token's heads belong to.
struct Values<'a, R> {
    rows: &'a R,
    width: usize,
    /// The keys that the token sees, counted in the tile.
    keys: Range<usize>,
    /// Whether to ask for the next tile's meanwhile.
    asks: bool,
}

impl<R: TileRows> Values<'_, R> {
    /// `H` heads, as many vectors of a row at a time as the registers hold sums.
    #[inline(always)]
    fn heads<S: Simd, const H: usize>(&self, s: S, weights: &[f32], out: &mut [f32]) {
        let mut first = 0;
        while S::ACCUMULATORS >= 12 && first + 4 * LANES <= self.width {
            self.vectors::<S, H, 4>(s, weights, first, out);
            first += 4 * LANES;
        }
        for first in (first..self.width).step_by(LANES) {
            self.vectors::<S, H, 1>(s, weights, first, out);
        }
    }

    /// `N` vectors from column `first` on.
    #[inline(always)]
    fn vectors<S: Simd, const H: usize, const N: usize>(
        &self,
        s: S,
        weights: &[f32],
        first: usize,
        out: &mut [f32],
    ) {
        let width = self.width;
        let (weights, out) = (&weights[..H * TILE], &mut out[..H * width]);
        debug_assert!(self.keys.end <= TILE && first + N * LANES <= width);
        let place = |h: usize, n: usize| h * width + first + n * LANES;
        let mut sums = [[s.splat(0.0); N]; H];
        for h in 0..H {
            for n in 0..N {
                // SAFETY: there are `H` rows of `out`, and `N` vectors from `first` on in each.
                sums[h][n] = unsafe { s.load(out.as_ptr().add(place(h, n))) };
            }
        }
        for key in self.keys.clone() {
            if self.asks {
                self.rows.ask_ahead(s, key, first, N * LANES);
            }
            // SAFETY: the keys are of the tile, and `weights` holds a value for each.
            unsafe {
                let v: [S::V; N] = std::array::from_fn(|n| self.rows.load(s, key, first + n * LANES));
                for h in 0..H {
                    let weight = s.splat(*weights.as_ptr().add(h * TILE + key));
                    for n in 0..N {
                        sums[h][n] = s.fma(weight, v[n], sums[h][n]);
                    }
                }
            }
        }
        for h in 0..H {
            for n in 0..N {
                // SAFETY: as for reading.
                unsafe { s.store(out.as_mut_ptr().add(place(h, n)), sums[h][n]) };
            }
        }
    }
}
