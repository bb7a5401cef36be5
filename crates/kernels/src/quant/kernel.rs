//! The product of a panel's columns and tiles of rounded rows.

use std::ops::Range;

use super::X_BLOCK;
use super::activations::Activations;
use super::blocks::{Kind, View, centred};
use crate::level::Kernel;
use crate::simd::{LANES, Simd};

/// How many rows of `x` a tile has.
pub(super) struct TileRows {
    /// Whether panels go by in pairs, or the rows are few and one tile.
    pub(super) many: bool,
}

impl Kernel for TileRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        match (self.many, S::INT_ACCUMULATORS) {
            // With two panels as many sums as registers hold.
            (true, 8..) => 6,
            (_, rows) => rows,
        }
    }
}

/// Some columns of `P` panels, one or two that follow each other, times many rows of `x`.
pub(super) struct IntTiles<'a, const P: usize> {
    pub(super) w: [View<'a>; P],
    pub(super) x: &'a Activations,
    pub(super) place: Place,
    pub(super) out: *mut f32,
}

/// Which part of the product to compute.
pub(super) struct Place {
    /// The first.
    pub(super) panel: usize,
    pub(super) first_col: usize,
    pub(super) x_rows: Range<usize>,
    /// Rows of the whole weight.
    pub(super) rows: usize,
}

impl<const P: usize> Kernel for IntTiles<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.w[0].kind {
            Kind::Nibbles => self.tiles::<S, 0, true>(s),
            Kind::Centred => self.tiles::<S, 0, false>(s),
            Kind::Bytes32 => self.tiles::<S, 1, false>(s),
            Kind::Bytes16 => self.tiles::<S, 2, false>(s),
        }
    }
}

impl<const P: usize> IntTiles<'_, P> {
    /// `BYTES` is 0 for codes below 16, or the number of blocks of bytes in 32 columns.
    #[inline(always)]
    fn tiles<S: Simd, const BYTES: usize, const MINS: bool>(&self, s: S) {
        for first in self.place.x_rows.clone().step_by(self.x.tile_rows) {
            // A tile is as long as it was packed, which the range of rows never cuts short.
            match self.x.tile_rows.min(self.x.m - first) {
                1 => self.tile::<S, 1, BYTES, MINS>(s, first),
                2 => self.tile::<S, 2, BYTES, MINS>(s, first),
                3 => self.tile::<S, 3, BYTES, MINS>(s, first),
                4 => self.tile::<S, 4, BYTES, MINS>(s, first),
                5 if S::INT_ACCUMULATORS > 4 => self.tile::<S, 5, BYTES, MINS>(s, first),
                6 if S::INT_ACCUMULATORS > 4 => self.tile::<S, 6, BYTES, MINS>(s, first),
                n => unreachable!("a tile of {n} rows is larger than the registers"),
            }
        }
    }

    /// Where the sums of a row of `x` and a panel are, and how many of them.
    ///
    /// # Safety
    /// The row is one of `x`.
    #[inline(always)]
    unsafe fn sums(&self, row: usize, p: usize) -> (*mut f32, usize) {
        let first = (self.place.panel + p) * LANES;
        // SAFETY: `out` is `[m, rows]`, and the row is one of them, says the caller.
        let out = unsafe { self.out.add(row * self.place.rows + first) };
        (out, LANES.min(self.place.rows - first))
    }

    /// Adds the products for `M` rows of `x` from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const BYTES: usize, const MINS: bool>(&self, s: S, first: usize) {
        let n_blocks = self.w[0].n_blocks;
        let x_block = first * (self.x.cols / X_BLOCK) + self.place.first_col / X_BLOCK * M;
        let x = &self.x.codes[x_block * X_BLOCK..][..n_blocks * M * X_BLOCK];
        let x_scales = &self.x.scales[x_block..][..n_blocks * M];
        let x_scaled_sums = &self.x.scaled_sums[x_block..][..n_blocks * M];
        let x_sums = &self.x.sums[x_block * self.x.parts..][..n_blocks * M * self.x.parts];
        let parts = BYTES.max(1);
        debug_assert_eq!(parts, self.x.parts);
        let codes: [&[u8]; P] = std::array::from_fn(|p| self.w[p].codes(n_blocks));
        let scales: [&[f32]; P] = std::array::from_fn(|p| &self.w[p].scales[..n_blocks * parts * LANES]);
        let n_mins = if MINS { n_blocks * LANES } else { 0 };
        let mins: [&[f32]; P] = std::array::from_fn(|p| &self.w[p].mins[..n_mins]);

        let mut sums = [[s.splat(0.0); M]; P];
        if self.place.first_col > 0 {
            for p in 0..P {
                for i in 0..M {
                    // SAFETY: the row is one of `x`, and the panels' rows are this task's alone.
                    sums[p][i] = unsafe {
                        match self.sums(first + i, p) {
                            (out, LANES) => s.load(out),
                            (out, n) => s.load_first(out, n),
                        }
                    };
                }
            }
        }
        for block in 0..n_blocks {
            // SAFETY: the slices above hold `n_blocks` blocks, of one row, `M` rows, sixteen lanes or 512 codes.
            unsafe {
                let codes: [*const u8; P] =
                    std::array::from_fn(|p| codes[p].as_ptr().add(block * self.w[p].stride));
                let x = x.as_ptr().add(block * M * X_BLOCK);
                let x_scales = x_scales.as_ptr().add(block * M);
                if BYTES == 0 {
                    let start = if MINS {
                        [0; M]
                    } else {
                        centred(x_sums.as_ptr().add(block * M))
                    };
                    let dots = s.dots_u4::<M, P, 8>(codes, x, start);
                    let x_scaled_sums = x_scaled_sums.as_ptr().add(block * M);
                    for p in 0..P {
                        let scale = s.load(scales[p].as_ptr().add(block * LANES));
                        for i in 0..M {
                            let both_scales = s.mul(scale, s.splat(*x_scales.add(i)));
                            sums[p][i] = s.fma(s.to_float(dots[p][i]), both_scales, sums[p][i]);
                            if MINS {
                                let min = s.load(mins[p].as_ptr().add(block * LANES));
                                sums[p][i] = s.fma(min, s.splat(*x_scaled_sums.add(i)), sums[p][i]);
                            }
                        }
                    }
                    continue;
                }
                for part in 0..BYTES {
                    let codes = codes.map(
                        #[inline(always)]
                        |codes| codes.add(part * LANES * X_BLOCK / BYTES).cast::<i8>(),
                    );
                    let x = x.add(part * M * X_BLOCK / BYTES);
                    let x_sums = x_sums.as_ptr().add((block * BYTES + part) * M);
                    let dots = if BYTES == 1 {
                        s.dots_i8::<M, P, 8>(codes, x, x_sums)
                    } else {
                        s.dots_i8::<M, P, 4>(codes, x, x_sums)
                    };
                    for p in 0..P {
                        let scale = s.load(scales[p].as_ptr().add((block * BYTES + part) * LANES));
                        for i in 0..M {
                            let both_scales = s.mul(scale, s.splat(*x_scales.add(i)));
                            sums[p][i] = s.fma(s.to_float(dots[p][i]), both_scales, sums[p][i]);
                        }
                    }
                }
            }
        }
        for p in 0..P {
            for i in 0..M {
                // SAFETY: as for reading.
                unsafe {
                    match self.sums(first + i, p) {
                        (out, LANES) => s.store(out, sums[p][i]),
                        (out, n) => s.store_first(out, sums[p][i], n),
                    }
                }
            }
        }
    }
}
