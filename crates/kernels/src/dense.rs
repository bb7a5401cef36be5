//! Products with weights stored as f32, bf16 or f16.
//!
//! Weights are packed once into panels of sixteen rows, column by column: `[panel][column][16]`, zeros below the
//! last row. So a vector holds one column of sixteen rows, and no sum is ever taken across lanes. Each row of the
//! result is a sum over columns in ascending order, in blocks of [`BLOCK`] columns whose sums are then added up in
//! ascending order too. The matrix–vector and the matrix–matrix kernel both do exactly this, so they agree to the
//! bit.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::element::Element;
use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::{Shared, Threads};

/// Columns whose products are summed before they join the total. A panel's block, as f32, fills half of a
/// 32 KiB first-level cache.
const BLOCK: usize = 256;

/// Rows of `x` whose block should stay in the second-level cache while the panels pass by.
const ROWS_IN_CACHE: usize = 192;

/// Panels that the kernel for few rows reads at a time: enough independent sums to hide the latency of one.
const STREAMS: usize = 4;

/// Most rows of `x` that are multiplied while the weight passes by once, not widened first.
const FEW_ROWS: usize = 8;

/// How far ahead of its use memory is asked for, in bytes.
const AHEAD: usize = 2048;

/// A packed `[rows, cols]` weight.
#[derive(Debug)]
pub(crate) struct Dense<E> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    panels: Buffer<E>,
}

impl<E: Element> Dense<E> {
    /// Packs rows that `values(row)` goes through from the first column to the last.
    pub(crate) fn pack<I: Iterator<Item = E>>(
        threads: &Threads,
        (rows, cols): (usize, usize),
        values: impl Fn(usize) -> I + Sync + Send,
    ) -> Self {
        let n_panels = rows.div_ceil(LANES);
        let mut panels = Buffer::<E>::zeroed_for_weights(n_panels * cols * LANES);
        let packed = Shared::new(&mut panels);
        threads.for_each(n_panels, |panel| {
            // SAFETY: each panel is a part of its own of the buffer.
            let columns = unsafe {
                std::slice::from_raw_parts_mut(packed.ptr().add(panel * cols * LANES), cols * LANES)
            };
            let first_row = panel * LANES;
            for (lane, row) in (first_row..rows.min(first_row + LANES)).enumerate() {
                for (column, value) in columns.chunks_exact_mut(LANES).zip(values(row)) {
                    column[lane] = value;
                }
            }
        });
        Self { rows, cols, panels }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[E]>(&self.panels)
    }

    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.panels[row / LANES * self.cols * LANES..][..self.cols * LANES];
        for (out, column) in out.iter_mut().zip(panel.chunks_exact(LANES)) {
            *out = column[row % LANES].to_f32();
        }
    }

    /// `out[i, r] = Σ x[i, c] · w[r, c]`; shapes are the caller's to check.
    pub(crate) fn matmul(&self, threads: &Threads, x: &[f32], out: &mut [f32]) {
        let m = out.len() / self.rows;
        let n_panels = self.rows.div_ceil(LANES);
        let panels_per_task = threads.share(n_panels, STREAMS, self.cols * LANES * size_of::<E>());
        let n_tasks = n_panels.div_ceil(panels_per_task);
        let panels_of = |task: usize| task * panels_per_task..n_panels.min((task + 1) * panels_per_task);
        if m <= FEW_ROWS {
            let out = Shared::new(out);
            threads.for_each(n_tasks, |task| {
                threads.run(FewRows {
                    weight: self,
                    panels: panels_of(task),
                    x,
                    out: out.ptr(),
                });
            });
            return;
        }
        let tile_rows = threads.run(TileRows);
        let tiles = pack_tiles(threads, x, m, self.cols, tile_rows);
        let rows_in_cache = ROWS_IN_CACHE / tile_rows * tile_rows;
        let out = Shared::new(out);
        threads.for_each(n_tasks, |task| {
            let mut widened = Buffer::<f32>::zeroed(BLOCK * LANES);
            for first_row in (0..m).step_by(rows_in_cache) {
                let x_rows = first_row..m.min(first_row + rows_in_cache);
                for block in (0..self.cols).step_by(BLOCK) {
                    for panel in panels_of(task) {
                        let n_cols = BLOCK.min(self.cols - block);
                        let stored = &self.panels[(panel * self.cols + block) * LANES..][..n_cols * LANES];
                        let w = E::as_f32(stored).unwrap_or_else(|| {
                            threads.run(Widen {
                                from: stored,
                                to: &mut widened,
                            });
                            &widened[..stored.len()]
                        });
                        let place = Place {
                            panel,
                            block,
                            x_rows: x_rows.clone(),
                            tile_rows,
                        };
                        let shape = (self.rows, self.cols);
                        threads.run(Tiles {
                            w,
                            shape,
                            place,
                            x: &tiles,
                            out: out.ptr(),
                        });
                    }
                }
            }
        });
    }

    /// # Safety
    /// `panel` is one of the weight's and `col` at most the number of columns.
    #[inline(always)]
    unsafe fn column(&self, panel: usize, col: usize) -> *const E {
        // SAFETY: in bounds, says the caller.
        unsafe { self.panels.as_ptr().add((panel * self.cols + col) * LANES) }
    }
}

struct TileRows;

impl Kernel for TileRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::ACCUMULATORS
    }
}

/// Cuts `x` into tiles of `tile_rows` rows (the last may have fewer), each stored column by column.
fn pack_tiles(threads: &Threads, x: &[f32], m: usize, cols: usize, tile_rows: usize) -> Buffer<f32> {
    let mut tiles = Buffer::<f32>::zeroed(m * cols);
    let packed = Shared::new(&mut tiles);
    threads.for_each(m.div_ceil(tile_rows), |tile| {
        let rows = tile * tile_rows..m.min((tile + 1) * tile_rows);
        // SAFETY: each tile is a part of its own of the buffer.
        let tile =
            unsafe { std::slice::from_raw_parts_mut(packed.ptr().add(rows.start * cols), rows.len() * cols) };
        for (i, row) in rows.clone().enumerate() {
            for (col, value) in x[row * cols..][..cols].iter().enumerate() {
                tile[col * rows.len() + i] = *value;
            }
        }
    });
    tiles
}

/// Few rows of `x` times some panels: bound by reading the weight.
struct FewRows<'a, E> {
    weight: &'a Dense<E>,
    panels: Range<usize>,
    x: &'a [f32],
    out: *mut f32,
}

impl<E: Element> Kernel for FewRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x.len() / self.weight.cols {
            1 => self.panels::<S, 1, STREAMS>(s),
            2 => self.panels::<S, 2, STREAMS>(s),
            3 => self.panels::<S, 3, 2>(s),
            4 => self.panels::<S, 4, 2>(s),
            5 => self.panels::<S, 5, 1>(s),
            6 => self.panels::<S, 6, 1>(s),
            7 => self.panels::<S, 7, 1>(s),
            FEW_ROWS => self.panels::<S, FEW_ROWS, 1>(s),
            m => unreachable!("{m} rows are more than a few"),
        }
    }
}

impl<E: Element> FewRows<'_, E> {
    #[inline(always)]
    fn panels<S: Simd, const M: usize, const P: usize>(&self, s: S) {
        let mut panel = self.panels.start;
        while panel + P <= self.panels.end {
            self.rows_of::<S, M, P>(s, panel);
            panel += P;
        }
        for panel in panel..self.panels.end {
            self.rows_of::<S, M, 1>(s, panel);
        }
    }

    /// The rows of `P` panels from `first` on, times `M` rows of `x`.
    #[inline(always)]
    fn rows_of<S: Simd, const M: usize, const P: usize>(&self, s: S, first: usize) {
        let cols = self.weight.cols;
        let x: [&[f32]; M] = std::array::from_fn(|i| &self.x[i * cols..][..cols]);
        let mut total = [[s.splat(0.0); M]; P];
        for block in (0..cols).step_by(BLOCK) {
            // SAFETY: `first .. first + P` are panels of the weight.
            let columns: [*const E; P] =
                std::array::from_fn(|p| unsafe { self.weight.column(first + p, block) });
            let mut sum = [[s.splat(0.0); M]; P];
            for col in 0..BLOCK.min(cols - block) {
                // SAFETY: `block + col` is a column of the weight and of the rows.
                unsafe {
                    let x: [S::V; M] = std::array::from_fn(|i| s.splat(*x[i].as_ptr().add(block + col)));
                    for p in 0..P {
                        let column = columns[p].add(col * LANES);
                        if (col * LANES * size_of::<E>()).is_multiple_of(64) {
                            s.prefetch(column.wrapping_byte_add(AHEAD).cast());
                        }
                        let w = E::load(s, column);
                        for i in 0..M {
                            sum[p][i] = s.fma(w, x[i], sum[p][i]);
                        }
                    }
                }
            }
            for p in 0..P {
                for i in 0..M {
                    total[p][i] = if block == 0 {
                        sum[p][i]
                    } else {
                        s.add(total[p][i], sum[p][i])
                    };
                }
            }
        }
        for (p, total) in total.into_iter().enumerate() {
            let row = (first + p) * LANES;
            let n_rows = LANES.min(self.weight.rows - row);
            for (i, total) in total.into_iter().enumerate() {
                // SAFETY: `out` is `[M, rows]`, and the panels' rows are this task's alone.
                unsafe { s.store_first(self.out.add(i * self.weight.rows + row), total, n_rows) };
            }
        }
    }
}

/// A stored block of a panel as f32.
struct Widen<'a, E> {
    from: &'a [E],
    to: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (from, to) in self.from.chunks_exact(LANES).zip(self.to.chunks_exact_mut(LANES)) {
            // SAFETY: both chunks have sixteen values.
            unsafe { s.store(to.as_mut_ptr(), E::load(s, from.as_ptr())) };
        }
    }
}

/// One block of a panel times many rows of `x`, packed in tiles: bound by arithmetic.
struct Tiles<'a> {
    /// `[columns of the block, 16]`
    w: &'a [f32],
    /// Rows and columns of the whole weight.
    shape: (usize, usize),
    place: Place,
    x: &'a [f32],
    out: *mut f32,
}

/// Which part of the product to compute.
struct Place {
    panel: usize,
    /// First column of the block.
    block: usize,
    x_rows: Range<usize>,
    tile_rows: usize,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for first in self.place.x_rows.clone().step_by(self.place.tile_rows) {
            match self.place.tile_rows.min(self.place.x_rows.end - first) {
                1 => self.tile::<S, 1>(s, first),
                2 => self.tile::<S, 2>(s, first),
                3 => self.tile::<S, 3>(s, first),
                4 => self.tile::<S, 4>(s, first),
                5 if S::ACCUMULATORS > 4 => self.tile::<S, 5>(s, first),
                6 if S::ACCUMULATORS > 4 => self.tile::<S, 6>(s, first),
                7 if S::ACCUMULATORS > 6 => self.tile::<S, 7>(s, first),
                8 if S::ACCUMULATORS > 6 => self.tile::<S, 8>(s, first),
                9 if S::ACCUMULATORS > 6 => self.tile::<S, 9>(s, first),
                10 if S::ACCUMULATORS > 6 => self.tile::<S, 10>(s, first),
                11 if S::ACCUMULATORS > 6 => self.tile::<S, 11>(s, first),
                12 if S::ACCUMULATORS > 6 => self.tile::<S, 12>(s, first),
                n => unreachable!("a tile of {n} rows is larger than the registers"),
            }
        }
    }
}

impl Tiles<'_> {
    /// Adds the products for `M` rows of `x` from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const M: usize>(&self, s: S, first: usize) {
        let (rows, cols) = self.shape;
        let Place { panel, block, .. } = self.place;
        let x = &self.x[first * cols + block * M..][..self.w.len() / LANES * M];
        let mut sum = [s.splat(0.0); M];
        for (w, x) in self.w.chunks_exact(LANES).zip(x.chunks_exact(M)) {
            // SAFETY: the chunk has sixteen values.
            let w = unsafe { s.load(w.as_ptr()) };
            for i in 0..M {
                sum[i] = s.fma(w, s.splat(x[i]), sum[i]);
            }
        }
        let n_rows = LANES.min(rows - panel * LANES);
        for (i, sum) in sum.into_iter().enumerate() {
            // SAFETY: `out` is `[m, rows]`, and the panel's rows are this task's alone.
            unsafe {
                let out = self.out.add((first + i) * rows + panel * LANES);
                if n_rows == LANES {
                    s.store(out, if block == 0 { sum } else { s.add(s.load(out), sum) });
                } else {
                    let total = if block == 0 {
                        sum
                    } else {
                        s.add(s.load_first(out, n_rows), sum)
                    };
                    s.store_first(out, total, n_rows);
                }
            }
        }
    }
}
