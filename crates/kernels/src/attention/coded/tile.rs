//! The arithmetic of one tile of keys in eight bits: scores, weights, weighted values.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::part::{State, of_tile};
use super::super::tile::soften;
use super::super::{TILE, Unit};
use super::{MOST, Queries, Rows, Tile, step_of};
use crate::level::Kernel;
use crate::simd::{LANES, Simd, WIDE};

/// One tile of keys for all queries of a unit.
pub(super) struct TileOfCodes<'a> {
    pub(super) unit: &'a Unit<'a>,
    pub(super) tile: usize,
    pub(super) queries: &'a Queries,
    pub(super) rows: &'a Tile<'a>,
    /// What to ask memory for meanwhile.
    pub(super) ahead: &'a Tile<'a>,
    /// `[group, TILE]`, room for scores.
    pub(super) scores: &'a mut [f32],
    /// `[group, TILE]`, room for weights in sixteen bits.
    pub(super) weights: &'a mut [i16],
    /// `[group]`, room for what those stand for.
    pub(super) factors: &'a mut [f32],
    pub(super) state: &'a mut State,
}

impl Kernel for TileOfCodes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, group) = (self.state.width, self.factors.len());
        for (i, token) in self.unit.tokens.clone().enumerate() {
            let keys = of_tile(&self.unit.visible(token), self.tile);
            if keys.is_empty() {
                continue;
            }
            let keys = keys.start - self.tile * TILE..keys.end - self.tile * TILE;
            // Once is enough.
            let ahead = (i == 0).then_some(self.ahead);
            let heads = i * group..(i + 1) * group;
            let score = Score {
                rows: self.rows.rows(),
                ahead: ahead.map(Tile::rows),
                width,
                keys: keys.clone(),
            };
            let codes = &self.queries.codes[heads.start * width..heads.end * width];
            score.heads(s, codes, &self.queries.steps[heads.clone()], self.scores);
            soften(s, self.state, heads.start, self.scores);
            let values = Values {
                rows: self.rows.rows(),
                ahead: ahead.map(Tile::rows),
                width,
                keys: keys.clone(),
            };
            let v_steps = values.rows.steps(s, keys);
            encode_weights(s, self.scores, v_steps, self.weights, self.factors);
            let out = &mut self.state.weighted[heads.start * width..heads.end * width];
            values.add(s, self.weights, self.factors, out);
        }
    }
}

/// A level by what its registers hold.
struct Registers<S>(PhantomData<S>);

impl<S: Simd> Registers<S> {
    /// Sums of five heads by four keys, or two heads by two.
    const MANY: bool = S::ACCUMULATORS >= 12;
}

/// How many of the heads `left` of `heads` are computed together.
#[inline(always)]
fn at_once<S: Simd>(left: usize, heads: usize) -> usize {
    let most = match Registers::<S>::MANY {
        false => 2,
        true if heads.is_multiple_of(5) => 5,
        true => 4,
    };
    match left.min(most) {
        3 => 2,
        n => n,
    }
}

/// What scores of a token's query heads are made of, beside the queries.
struct Score<'a> {
    rows: Rows<'a, false>,
    ahead: Option<Rows<'a, false>>,
    width: usize,
    /// The keys that the token sees, counted in the tile.
    keys: Range<usize>,
}

impl Score<'_> {
    /// `[heads, TILE]`; minus infinity for keys that the token does not see.
    #[inline(always)]
    fn heads<S: Simd>(&self, s: S, q: &[i16], q_steps: &[f32], scores: &mut [f32]) {
        let heads = q_steps.len();
        let mut head = 0;
        while head < heads {
            let n = at_once::<S>(heads - head, heads);
            let (q, scores, asks) = (&q[head * self.width..], &mut scores[head * TILE..], head == 0);
            if Registers::<S>::MANY {
                match n {
                    1 => self.all_keys::<S, 1, 4>(s, q, scores, asks),
                    2 => self.all_keys::<S, 2, 4>(s, q, scores, asks),
                    4 => self.all_keys::<S, 4, 4>(s, q, scores, asks),
                    _ => self.all_keys::<S, 5, 4>(s, q, scores, asks),
                }
            } else {
                match n {
                    1 => self.all_keys::<S, 1, 2>(s, q, scores, asks),
                    _ => self.all_keys::<S, 2, 2>(s, q, scores, asks),
                }
            }
            head += n;
        }
        let k_steps = self.rows.steps(s, self.keys.clone());
        for (scores, q_step) in scores.chunks_exact_mut(TILE).zip(q_steps) {
            let q_step = s.splat(*q_step);
            for (scores, k_steps) in scores.chunks_exact_mut(LANES).zip(k_steps) {
                // SAFETY: the chunk has sixteen values.
                unsafe {
                    let step = s.mul(k_steps, q_step);
                    s.store(scores.as_mut_ptr(), s.mul(s.load(scores.as_ptr()), step));
                }
            }
            scores[..self.keys.start].fill(f32::NEG_INFINITY);
            scores[self.keys.end..].fill(f32::NEG_INFINITY);
        }
    }

    /// Sums of products of `H` heads with all keys, `K` at a time, and with what fills them up to that.
    #[inline(always)]
    fn all_keys<S: Simd, const H: usize, const K: usize>(
        &self,
        s: S,
        q: &[i16],
        sums: &mut [f32],
        asks: bool,
    ) {
        const { assert!(TILE.is_multiple_of(K)) };
        for key in (self.keys.start / K * K..self.keys.end).step_by(K) {
            self.dots::<S, H, K>(s, q, key, sums, asks);
        }
    }

    #[inline(always)]
    fn dots<S: Simd, const H: usize, const K: usize>(
        &self,
        s: S,
        q: &[i16],
        key: usize,
        sums: &mut [f32],
        asks: bool,
    ) {
        let (q, sums) = (&q[..H * self.width], &mut sums[..H * TILE]);
        let rows: [*const i8; K] = std::array::from_fn(|j| self.rows.codes(key + j));
        let mut lanes = [[s.no_ints(); K]; H];
        for i in (0..self.width).step_by(WIDE) {
            // SAFETY: `i` is a whole vector of a row, and there are `H` rows of `q`.
            let k: [S::W; K] = std::array::from_fn(|j| unsafe { s.widen_i8(rows[j].add(i)) });
            if let (true, Some(ahead)) = (asks, self.ahead) {
                (key..key + K).for_each(|key| ask(s, &ahead, key, i));
            }
            for h in 0..H {
                // SAFETY: as above.
                let q = unsafe { s.load_i16(q.as_ptr().add(h * self.width + i)) };
                for j in 0..K {
                    lanes[h][j] = s.add_pairs(lanes[h][j], q, k[j]);
                }
            }
        }
        for h in 0..H {
            let totals = s.reduce_ints(lanes[h]);
            for j in 0..K {
                sums[h * TILE + key + j] = totals[j] as f32;
            }
        }
    }
}

/// Weights times their values' steps, in sixteen bits; `factors` are what they stand for then.
///
/// `weights` and `codes`: `[heads, TILE]`; `v_steps`: zero where nothing is seen.
#[inline(always)]
fn encode_weights<S: Simd>(
    s: S,
    weights: &[f32],
    v_steps: [S::V; TILE / LANES],
    codes: &mut [i16],
    factors: &mut [f32],
) {
    const { assert!(TILE == 2 * LANES) };
    let of_heads = weights.chunks_exact(TILE).zip(codes.chunks_exact_mut(TILE));
    for ((weights, codes), factor) in of_heads.zip(factors) {
        // SAFETY: both have twice sixteen values.
        let weights = unsafe { [s.load(weights.as_ptr()), s.load(weights.as_ptr().add(LANES))] };
        let parts = [s.mul(weights[0], v_steps[0]), s.mul(weights[1], v_steps[1])];
        let largest = s.reduce_max(s.max(parts[0], parts[1]));
        let (step, per_step) = step_of(largest, MOST);
        // A sum passes on what is not finite, the largest may not.
        let total = s.reduce_add(s.add(parts[0], parts[1]));
        *factor = if total.is_finite() { step } else { f32::NAN };
        let per_step = s.splat(per_step);
        for (part, codes) in parts.into_iter().zip(codes.chunks_exact_mut(LANES)) {
            // SAFETY: the chunk has room for sixteen values.
            unsafe { s.store_i16(codes.as_mut_ptr(), s.mul(part, per_step)) };
        }
    }
}

/// The values that weights of a token's heads belong to.
struct Values<'a> {
    rows: Rows<'a, true>,
    ahead: Option<Rows<'a, true>>,
    width: usize,
    /// The keys that the token sees, counted in the tile.
    keys: Range<usize>,
}

impl Values<'_> {
    /// Adds weighted values to each head's row of `out`.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, weights: &[i16], factors: &[f32], out: &mut [f32]) {
        let heads = factors.len();
        let mut head = 0;
        while head < heads {
            let n = at_once::<S>(heads - head, heads);
            let (weights, factors) = (&weights[head * TILE..], &factors[head..]);
            let (out, asks) = (&mut out[head * self.width..], head == 0);
            if Registers::<S>::MANY {
                match n {
                    1 => self.heads::<S, 1, 2>(s, weights, factors, out, asks),
                    2 => self.heads::<S, 2, 2>(s, weights, factors, out, asks),
                    4 => self.heads::<S, 4, 2>(s, weights, factors, out, asks),
                    _ => self.heads::<S, 5, 2>(s, weights, factors, out, asks),
                }
            } else {
                match n {
                    1 => self.heads::<S, 1, 1>(s, weights, factors, out, asks),
                    _ => self.heads::<S, 2, 1>(s, weights, factors, out, asks),
                }
            }
            head += n;
        }
    }

    /// `H` heads, `N` times thirty-two columns at a time while there are as many, then head by head.
    #[inline(always)]
    fn heads<S: Simd, const H: usize, const N: usize>(
        &self,
        s: S,
        weights: &[i16],
        factors: &[f32],
        out: &mut [f32],
        asks: bool,
    ) {
        let mut first = 0;
        while first + N * WIDE <= self.width {
            self.columns::<S, H, N>(s, weights, factors, first, out, asks);
            first += N * WIDE;
        }
        for first in (first..self.width).step_by(WIDE) {
            for h in 0..H {
                let (weights, out) = (&weights[h * TILE..], &mut out[h * self.width..]);
                self.columns::<S, 1, 1>(s, weights, &factors[h..], first, out, asks && h == 0);
            }
        }
    }

    /// `N` times thirty-two columns from `first` on.
    #[inline(always)]
    fn columns<S: Simd, const H: usize, const N: usize>(
        &self,
        s: S,
        weights: &[i16],
        factors: &[f32],
        first: usize,
        out: &mut [f32],
        asks: bool,
    ) {
        let (weights, factors, out) = (&weights[..H * TILE], &factors[..H], &mut out[..H * self.width]);
        debug_assert!(self.keys.end <= TILE && first + N * WIDE <= self.width);
        let mut sums = [[[s.no_ints(); 2]; N]; H];
        // Pairs of keys: one that is not seen has a weight of zero.
        for key in (self.keys.start / 2 * 2..self.keys.end).step_by(2) {
            if let (true, Some(ahead)) = (asks, self.ahead) {
                (key..key + 2).for_each(|key| ask(s, &ahead, key, first));
            }
            let (even, odd) = (self.rows.codes(key), self.rows.codes(key + 1));
            // SAFETY: there are `N` vectors of each row, and `H` rows of weights, `TILE` each.
            unsafe {
                let pairs: [[S::W; 2]; N] = std::array::from_fn(
                    #[inline(always)]
                    |n| {
                        let even = s.widen_i8(even.add(first + n * WIDE));
                        s.zip(even, s.widen_i8(odd.add(first + n * WIDE)))
                    },
                );
                for h in 0..H {
                    let weight = s.splat_pair(weights.as_ptr().add(h * TILE + key));
                    for n in 0..N {
                        sums[h][n][0] = s.add_pairs(sums[h][n][0], pairs[n][0], weight);
                        sums[h][n][1] = s.add_pairs(sums[h][n][1], pairs[n][1], weight);
                    }
                }
            }
        }
        for h in 0..H {
            let factor = s.splat(factors[h]);
            for n in 0..N {
                let sums = s.in_order(sums[h][n]);
                for i in 0..2 {
                    let place = h * self.width + first + n * WIDE + i * LANES;
                    // SAFETY: there are `H` rows of `out`, and `N` times thirty-two columns from `first` on in each.
                    unsafe {
                        let out = out.as_mut_ptr().add(place);
                        s.store(out, s.fma(s.to_float(sums[i]), factor, s.load(out)));
                    }
                }
            }
        }
    }
}

/// Asks memory for a row's codes from `i` on, a vector of them, and for its step with the first. A few lines between some
/// arithmetic: more at once would make loads wait.
#[inline(always)]
fn ask<S: Simd, const VALUES: bool>(s: S, rows: &Rows<'_, VALUES>, place: usize, i: usize) {
    const LINE: usize = 64;
    if i.is_multiple_of(LINE) {
        s.prefetch(rows.codes(place).cast::<u8>().wrapping_add(i));
    }
    if i == 0 {
        s.prefetch(rows.step(place).cast());
    }
}
