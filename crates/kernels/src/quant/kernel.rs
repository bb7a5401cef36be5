//! The product of a panel's columns and tiles of rounded rows.

use std::ops::Range;

use super::X_BLOCK;
use super::activations::Activations;
use super::blocks::{Kind, View};
use crate::level::Kernel;
use crate::simd::{LANES, Simd};

/// Rows of `x` in a tile.
pub(super) struct TileRows;

impl Kernel for TileRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::INT_ACCUMULATORS
    }
}

/// Some columns of a panel times many rows of `x`.
pub(super) struct IntTiles<'a> {
    pub(super) w: View<'a>,
    pub(super) x: &'a Activations,
    pub(super) place: Place,
    pub(super) out: *mut f32,
}

/// Which part of the product to compute.
pub(super) struct Place {
    pub(super) panel: usize,
    pub(super) first_col: usize,
    pub(super) x_rows: Range<usize>,
    /// Rows of the whole weight.
    pub(super) rows: usize,
}

impl Kernel for IntTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.w.kind {
            Kind::Nibbles => self.tiles::<S, 0>(s),
            Kind::Bytes32 => self.tiles::<S, 1>(s),
            Kind::Bytes16 => self.tiles::<S, 2>(s),
        }
    }
}

impl IntTiles<'_> {
    /// `BYTES` is 0 for nibbles, or the number of blocks of bytes in 32 columns.
    #[inline(always)]
    fn tiles<S: Simd, const BYTES: usize>(&self, s: S) {
        for first in self.place.x_rows.clone().step_by(self.x.tile_rows) {
            // A tile is as long as it was packed, which the range of rows never cuts short.
            match self.x.tile_rows.min(self.x.m - first) {
                1 => self.tile::<S, 1, BYTES>(s, first),
                2 => self.tile::<S, 2, BYTES>(s, first),
                3 => self.tile::<S, 3, BYTES>(s, first),
                4 => self.tile::<S, 4, BYTES>(s, first),
                5 if S::INT_ACCUMULATORS > 4 => self.tile::<S, 5, BYTES>(s, first),
                6 if S::INT_ACCUMULATORS > 4 => self.tile::<S, 6, BYTES>(s, first),
                7 if S::INT_ACCUMULATORS > 4 => self.tile::<S, 7, BYTES>(s, first),
                8 if S::INT_ACCUMULATORS > 4 => self.tile::<S, 8, BYTES>(s, first),
                n => unreachable!("a tile of {n} rows is larger than the registers"),
            }
        }
    }

    /// Adds the products for `M` rows of `x` from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const BYTES: usize>(&self, s: S, first: usize) {
        let Place {
            panel,
            first_col,
            rows,
            ..
        } = self.place;
        let n_lanes = LANES.min(rows - panel * LANES);
        let n_blocks = self.w.n_blocks;
        let x_block = first * (self.x.cols / X_BLOCK) + first_col / X_BLOCK * M;
        let x = &self.x.codes[x_block * X_BLOCK..][..n_blocks * M * X_BLOCK];
        let x_scales = &self.x.scales[x_block..][..n_blocks * M];
        let x_scaled_sums = &self.x.scaled_sums[x_block..][..n_blocks * M];
        let x_sums = &self.x.sums[x_block * self.x.parts..][..n_blocks * M * self.x.parts];
        let parts = BYTES.max(1);
        debug_assert_eq!(parts, self.x.parts);
        let codes = self.w.codes(n_blocks);
        let scales = &self.w.scales[..n_blocks * parts * LANES];
        let mins = &self.w.mins[..if BYTES == 0 { n_blocks * LANES } else { 0 }];

        let mut sum = [s.splat(0.0); M];
        if first_col > 0 {
            for i in 0..M {
                // SAFETY: `out` is `[m, rows]`, and the panel's rows are this task's alone.
                unsafe {
                    let out = self.out.add((first + i) * rows + panel * LANES);
                    sum[i] = if n_lanes == LANES {
                        s.load(out)
                    } else {
                        s.load_first(out, n_lanes)
                    };
                }
            }
        }
        for block in 0..n_blocks {
            // SAFETY: the slices above hold `n_blocks` blocks, of one row, `M` rows, sixteen lanes or 512 codes.
            unsafe {
                let codes = codes.as_ptr().add(block * self.w.stride);
                let x = x.as_ptr().add(block * M * X_BLOCK);
                let x_scales = x_scales.as_ptr().add(block * M);
                if BYTES == 0 {
                    let dots = s.dot_u4::<M, 8>(codes, x);
                    let scale = s.load(scales.as_ptr().add(block * LANES));
                    let min = s.load(mins.as_ptr().add(block * LANES));
                    let x_scaled_sums = x_scaled_sums.as_ptr().add(block * M);
                    for i in 0..M {
                        let both_scales = s.mul(scale, s.splat(*x_scales.add(i)));
                        sum[i] = s.fma(s.to_float(dots[i]), both_scales, sum[i]);
                        sum[i] = s.fma(min, s.splat(*x_scaled_sums.add(i)), sum[i]);
                    }
                } else {
                    for part in 0..BYTES {
                        let codes = codes.add(part * LANES * X_BLOCK / BYTES).cast();
                        let x = x.add(part * M * X_BLOCK / BYTES);
                        let x_sums = x_sums.as_ptr().add((block * BYTES + part) * M);
                        let dots = if BYTES == 1 {
                            s.dot_i8::<M, 8>(codes, x, x_sums)
                        } else {
                            s.dot_i8::<M, 4>(codes, x, x_sums)
                        };
                        let scale = s.load(scales.as_ptr().add((block * BYTES + part) * LANES));
                        for i in 0..M {
                            let both_scales = s.mul(scale, s.splat(*x_scales.add(i)));
                            sum[i] = s.fma(s.to_float(dots[i]), both_scales, sum[i]);
                        }
                    }
                }
            }
        }
        for i in 0..M {
            // SAFETY: as for reading.
            unsafe {
                let out = self.out.add((first + i) * rows + panel * LANES);
                if n_lanes == LANES {
                    s.store(out, sum[i])
                } else {
                    s.store_first(out, sum[i], n_lanes)
                }
            }
        }
    }
}
