//! The product of panels and few rows, bound by reading the weight: records are read front to back, and blocks are
//! unpacked in registers.
//!
//! It takes the same steps in the same order as [`super::kernel`], so both give the same bits.

use std::ops::Range;

use super::X_BLOCK;
use super::activations::Activations;
use super::blocks::{Kind, Record};
use crate::level::Kernel;
use crate::simd::{LANES, Simd};

/// How far ahead of its use memory is asked for, in bytes of all panels that are read at a time.
const AHEAD: usize = 8192;

const LINE: usize = 64;

/// Some panels times one tile of rows.
pub(crate) struct Stream<'a> {
    /// `[panel][record]`, those of the whole weight.
    pub(super) records: &'a [u8],
    pub(super) panels: Range<usize>,
    /// Rows of the whole weight.
    pub(super) rows: usize,
    /// No more rows than one tile holds.
    pub(super) x: &'a Activations,
    /// `[x.m, rows]`
    pub(super) out: *mut f32,
}

/// A [`Stream`] in a known format.
pub(super) struct StreamOf<'a, R> {
    pub(super) blocks: &'a R,
    pub(super) job: &'a Stream<'a>,
}

impl<R: Record> Kernel for StreamOf<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Several panels at a time where there are registers for it: more sums that do not wait for each other.
        match self.job.x.m {
            1 => self.panels::<S, 1, 4>(s),
            2 => self.panels::<S, 2, 2>(s),
            3 => self.panels::<S, 3, 2>(s),
            4 => self.panels::<S, 4, 2>(s),
            5 if S::INT_ACCUMULATORS > 4 => self.panels::<S, 5, 1>(s),
            6 if S::INT_ACCUMULATORS > 4 => self.panels::<S, 6, 1>(s),
            7 if S::INT_ACCUMULATORS > 4 => self.panels::<S, 7, 1>(s),
            8 if S::INT_ACCUMULATORS > 4 => self.panels::<S, 8, 1>(s),
            n => unreachable!("{n} rows are more than a tile"),
        }
    }
}

impl<R: Record> StreamOf<'_, R> {
    #[inline(always)]
    fn panels<S: Simd, const M: usize, const P: usize>(&self, s: S) {
        let Range { start, end } = self.job.panels;
        let mut panel = start;
        while panel + P <= end {
            self.rows_of::<S, M, P>(s, panel);
            panel += P;
        }
        for panel in panel..end {
            self.rows_of::<S, M, 1>(s, panel);
        }
    }

    /// The rows of `P` panels from `first` on.
    #[inline(always)]
    fn rows_of<S: Simd, const M: usize, const P: usize>(&self, s: S, first: usize) {
        let (blocks, x) = (self.blocks, self.job.x);
        let (record_bytes, record_cols) = (blocks.record_bytes(), blocks.cols());
        let n_records = x.cols / record_cols;
        let panel_bytes = n_records * record_bytes;
        let panels = &self.job.records[first * panel_bytes..][..P * panel_bytes];
        let (n_blocks, x_per_block) = (record_cols / R::KIND.block(), X_BLOCK / R::KIND.block());
        // Lines of a block, so that all of a record are asked for.
        let n_lines = record_bytes.div_ceil(n_blocks * LINE);
        let n_x = x.cols / X_BLOCK;
        debug_assert_eq!((x.m, x.parts), (M, x_per_block));
        let codes = &x.codes[..x.cols * M];
        let (scales, scaled_sums) = (&x.scales[..n_x * M], &x.scaled_sums[..n_x * M]);
        let sums = &x.sums[..n_x * x_per_block * M];

        let mut total = [[s.splat(0.0); M]; P];
        for record_index in 0..n_records {
            // SAFETY: `panels` holds `P` panels of `n_records` records.
            let records: [*const u8; P] = std::array::from_fn(|p| unsafe {
                panels.as_ptr().add(p * panel_bytes + record_index * record_bytes)
            });
            // SAFETY: each points at a record.
            let heads: [R::Head<S>; P] = std::array::from_fn(|p| unsafe { blocks.head(s, records[p]) });
            for block in 0..n_blocks {
                let place = record_index * n_blocks + block;
                let x_place = place / x_per_block * M;
                // SAFETY: the slices of `x` hold as many blocks as the panels do, `M` rows of each.
                unsafe {
                    let x_codes = codes.as_ptr().add(place * R::KIND.block() * M);
                    let x_sums = sums.as_ptr().add(place * M);
                    let (x_scales, x_scaled_sums) =
                        (scales.as_ptr().add(x_place), scaled_sums.as_ptr().add(x_place));
                    for p in 0..P {
                        for line in 0..n_lines {
                            let at = (block * n_lines + line) * LINE + AHEAD / P;
                            s.prefetch(records[p].wrapping_add(at));
                        }
                        let dots = blocks.dot::<S, M>(s, records[p], block, x_codes, x_sums);
                        let (scale, min) = blocks.scale(s, records[p], heads[p], block);
                        for i in 0..M {
                            let both_scales = s.mul(scale, s.splat(*x_scales.add(i)));
                            total[p][i] = s.fma(s.to_float(dots[i]), both_scales, total[p][i]);
                            if R::KIND == Kind::Nibbles {
                                total[p][i] = s.fma(min, s.splat(*x_scaled_sums.add(i)), total[p][i]);
                            }
                        }
                    }
                }
            }
        }
        for (p, total) in total.into_iter().enumerate() {
            let row = (first + p) * LANES;
            let n_rows = LANES.min(self.job.rows - row);
            for (i, total) in total.into_iter().enumerate() {
                // SAFETY: `out` is `[M, rows]`, and the panels' rows are this job's alone.
                unsafe {
                    let out = self.job.out.add(i * self.job.rows + row);
                    if n_rows == LANES {
                        s.store(out, total)
                    } else {
                        s.store_first(out, total, n_rows)
                    }
                }
            }
        }
    }
}
