//! The short convolution over keys and values, the first thing that sets Baichuan-M1 apart.
//!
//! **What it is for.** Copying from context ("after *A* came *B*, so after *A* comes *B* again") takes a plain
//! transformer two layers: one head gives every key a view of the token before it, a head of a later layer matches
//! on that. Here each key and each value is mixed with its predecessors before attention sees it, so any single
//! layer has that view, for `conv_window` numbers per key/value head and no product at all. (Baichuan-M1: Pushing
//! the Medical Capability of Large Language Models, arXiv 2502.12671.)
//!
//! **Formula**, per key/value head `h`, for `c` taps, with `x[t] = 0` before the sequence begins:
//!
//! `out[t] = Σ_{j < c} w[h, j] · x[t − (c − 1) + j]`
//!
//! so the last tap is the token's own; the published model has `c = 2`: `w[h, 0] · x[t − 1] + w[h, 1] · x[t]`.
//!
//! **State.** `x` is the raw output of the projection, before rotation. The cache holds keys that are convolved and
//! rotated already, from which `x` cannot be had back: so the raw rows of the last `c − 1` tokens are carried from
//! step to step beside it ([`RawRows`]). They stay f32 whatever the cache's type is: else a result would depend on
//! where a prompt was cut.

/// The taps of one layer's keys or values.
#[derive(Debug)]
pub(crate) struct Convolution {
    /// `[kv_heads, conv_window]`, oldest token first.
    taps: Vec<f32>,
    conv_window: usize,
    head_dim: usize,
}

impl Convolution {
    /// `taps`: `[kv_heads, conv_window]`, as stored in a checkpoint.
    pub(crate) fn new(taps: Vec<f32>, conv_window: usize, head_dim: usize) -> Self {
        debug_assert!(conv_window > 0 && taps.len().is_multiple_of(conv_window));
        Self {
            taps,
            conv_window,
            head_dim,
        }
    }

    /// Convolves the row of one token. `row(j)` is the raw row, `[kv_heads, head_dim]`, that tap `j` falls on.
    ///
    /// Terms are added in the order of the taps, so a row comes out the same however a prompt is cut.
    pub(crate) fn apply<'r>(&self, row: impl Fn(usize) -> &'r [f32], out: &mut [f32]) {
        for (j, x) in (0..self.conv_window).map(|j| (j, row(j))) {
            let heads = out
                .chunks_exact_mut(self.head_dim)
                .zip(x.chunks_exact(self.head_dim));
            for (head, (out, x)) in heads.enumerate() {
                let tap = self.taps[head * self.conv_window + j];
                match j {
                    0 => out.iter_mut().zip(x).for_each(|(out, x)| *out = tap * x),
                    _ => out.iter_mut().zip(x).for_each(|(out, x)| *out += tap * x),
                }
            }
        }
    }
}

/// The raw rows of the last `conv_window − 1` tokens of every slot, for one layer's keys or values.
#[derive(Debug)]
pub(crate) struct RawRows {
    /// `[slots, conv_window − 1, width]`, oldest token first.
    rows: Vec<f32>,
    n_carried: usize,
    width: usize,
}

impl RawRows {
    /// Zeros for `slots` sequences; `width` is `kv_heads · head_dim`.
    pub(crate) fn new(slots: usize, conv_window: usize, width: usize) -> Self {
        let n_carried = conv_window - 1;
        Self {
            rows: vec![0.0; slots * n_carried * width],
            n_carried,
            width,
        }
    }

    /// The rows of one slot, `[conv_window − 1, width]`.
    fn of(&self, slot: usize) -> &[f32] {
        let len = self.n_carried * self.width;
        &self.rows[slot * len..][..len]
    }

    /// One of them, counted from the oldest.
    pub(crate) fn row(&self, slot: usize, index: usize) -> &[f32] {
        &self.of(slot)[index * self.width..][..self.width]
    }

    fn of_mut(&mut self, slot: usize) -> &mut [f32] {
        let len = self.n_carried * self.width;
        &mut self.rows[slot * len..][..len]
    }

    /// Makes a slot's rows those before the first token of a sequence.
    pub(crate) fn reset(&mut self, slot: usize) {
        self.of_mut(slot).fill(0.0);
    }

    /// Fills a slot's rows with NaN.
    pub(crate) fn scrub(&mut self, slot: usize) {
        self.of_mut(slot).fill(f32::NAN);
    }

    /// Copies the rows of one slot to another.
    pub(crate) fn copy(&mut self, from: usize, to: usize) {
        let len = self.n_carried * self.width;
        self.rows.copy_within(from * len..(from + 1) * len, to * len);
    }

    /// Moves a slot on by `n_tokens` whose raw rows `row` gives, counted from 0.
    pub(crate) fn advance<'r>(&mut self, slot: usize, n_tokens: usize, row: impl Fn(usize) -> &'r [f32]) {
        let (n_carried, width) = (self.n_carried, self.width);
        let n_new = n_tokens.min(n_carried);
        let rows = self.of_mut(slot);
        rows.copy_within(n_new * width.., 0);
        let new = rows[(n_carried - n_new) * width..].chunks_exact_mut(width);
        for (i, to) in new.enumerate() {
            to.copy_from_slice(row(n_tokens - n_new + i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a sequence of one-head rows through taps, cut into chunks of `chunk`.
    fn convolve(taps: &[f32], x: &[[f32; 2]], chunk: usize) -> Vec<[f32; 2]> {
        let c = taps.len();
        let convolution = Convolution::new(taps.to_vec(), c, 2);
        let mut carry = RawRows::new(1, c, 2);
        let mut all = Vec::new();
        for x in x.chunks(chunk) {
            for t in 0..x.len() {
                let mut out = [f32::NAN; 2];
                let row = |j: usize| match (t + j).checked_sub(c - 1) {
                    Some(t) => &x[t][..],
                    None => carry.row(0, t + j),
                };
                convolution.apply(row, &mut out);
                all.push(out);
            }
            carry.advance(0, x.len(), |t| &x[t]);
        }
        all
    }

    #[test]
    fn every_number_of_taps_follows_the_formula_in_chunks_of_any_length() {
        let x: Vec<[f32; 2]> = (0..7).map(|t| [t as f32 + 1.0, -(t as f32)]).collect();
        let taps = [0.5, -2.0, 3.0, 0.25];
        for c in 1..=4 {
            let expected: Vec<[f32; 2]> = (0..x.len())
                .map(|t| {
                    [0, 1].map(|i| {
                        let term = |j: usize| (t + j).checked_sub(c - 1).map_or(0.0, |t| taps[j] * x[t][i]);
                        (0..c).map(term).sum()
                    })
                })
                .collect();
            for chunk in 1..=7 {
                assert_eq!(
                    convolve(&taps[..c], &x, chunk),
                    expected,
                    "{c} taps in chunks of {chunk}"
                );
            }
        }
    }

    #[test]
    fn each_head_has_taps_of_its_own() {
        let convolution = Convolution::new(vec![1.0, 10.0, 2.0, 20.0], 2, 1);
        let rows = [[3.0, 4.0], [5.0, 6.0]];
        let mut out = [0.0; 2];
        convolution.apply(|j| &rows[j], &mut out);
        assert_eq!(out, [3.0 + 50.0, 8.0 + 120.0]);
    }

    #[test]
    fn slots_are_copied_reset_and_scrubbed_one_by_one() {
        let mut carry = RawRows::new(3, 2, 2);
        carry.advance(0, 1, |_| &[1.0, 2.0]);
        carry.copy(0, 2);
        carry.scrub(1);
        assert_eq!((carry.of(0), carry.of(2)), (&[1.0, 2.0][..], &[1.0, 2.0][..]));
        assert!(carry.of(1).iter().all(|x| x.is_nan()));
        carry.reset(1);
        carry.reset(0);
        assert_eq!(
            (carry.of(0), carry.of(1), carry.of(2)),
            (&[0.0; 2][..], &[0.0; 2][..], &[1.0, 2.0][..])
        );
    }
}
