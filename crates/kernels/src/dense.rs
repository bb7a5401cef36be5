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

/// Panels that the matrix–vector kernel reads at a time: enough independent sums to hide the latency of one.
const STREAMS: usize = 4;

/// A packed `[rows, cols]` weight.
#[derive(Debug)]
pub(crate) struct Dense<E> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    panels: Buffer<E>,
}

impl<E: Element> Dense<E> {
    /// Packs row-major `data`.
    pub(crate) fn pack(threads: &Threads, rows: usize, cols: usize, data: &[E]) -> Self {
        let n_panels = rows.div_ceil(LANES);
        let mut panels = Buffer::<E>::zeroed(n_panels * cols * LANES);
        let packed = Shared::new(&mut panels);
        threads.for_each(n_panels, |panel| {
            // SAFETY: each panel is a part of its own of the buffer.
            let panel_out = unsafe {
                std::slice::from_raw_parts_mut(packed.ptr().add(panel * cols * LANES), cols * LANES)
            };
            let first_row = panel * LANES;
            for (lane, row) in (first_row..rows.min(first_row + LANES)).enumerate() {
                for (col, value) in data[row * cols..][..cols].iter().enumerate() {
                    panel_out[col * LANES + lane] = *value;
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
        // Tasks end at a whole number of streams, and there are several a thread to even out their speeds.
        let groups = n_panels.div_ceil(STREAMS);
        let groups_per_task = groups.div_ceil(threads.count() * if threads.count() == 1 { 1 } else { 8 });
        let n_tasks = groups.div_ceil(groups_per_task);
        let panels_of = |task: usize| {
            let per_task = groups_per_task * STREAMS;
            task * per_task..n_panels.min((task + 1) * per_task)
        };
        if m == 1 {
            let out = Shared::new(out);
            threads.for_each(n_tasks, |task| {
                threads.run(Vector {
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
        let out = Shared::new(out);
        threads.for_each(n_tasks, |task| {
            let panels = panels_of(task);
            threads.run(Tiles {
                weight: self,
                panels,
                x: &tiles,
                m,
                tile_rows,
                out: out.ptr(),
            });
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

/// One row of `x` times some panels: bound by reading the weight.
struct Vector<'a, E> {
    weight: &'a Dense<E>,
    panels: Range<usize>,
    x: &'a [f32],
    out: *mut f32,
}

impl<E: Element> Kernel for Vector<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut panel = self.panels.start;
        while panel + STREAMS <= self.panels.end {
            self.streams::<S, STREAMS>(s, panel);
            panel += STREAMS;
        }
        for panel in panel..self.panels.end {
            self.streams::<S, 1>(s, panel);
        }
    }
}

impl<E: Element> Vector<'_, E> {
    /// The rows of `N` panels from `first` on.
    #[inline(always)]
    fn streams<S: Simd, const N: usize>(&self, s: S, first: usize) {
        let cols = self.weight.cols;
        let mut total = [s.splat(0.0); N];
        for block in (0..cols).step_by(BLOCK) {
            // SAFETY: `first .. first + N` are panels of the weight.
            let columns: [*const E; N] =
                std::array::from_fn(|i| unsafe { self.weight.column(first + i, block) });
            let mut sum = [s.splat(0.0); N];
            for (col, &x) in self.x[block..cols.min(block + BLOCK)].iter().enumerate() {
                let x = s.splat(x);
                for i in 0..N {
                    // SAFETY: `block + col` is a column of the weight.
                    let w = unsafe { E::load(s, columns[i].add(col * LANES)) };
                    sum[i] = s.fma(w, x, sum[i]);
                }
            }
            for i in 0..N {
                total[i] = if block == 0 {
                    sum[i]
                } else {
                    s.add(total[i], sum[i])
                };
            }
        }
        for (i, total) in total.into_iter().enumerate() {
            let row = (first + i) * LANES;
            let n_rows = LANES.min(self.weight.rows - row);
            // SAFETY: `out` has the weight's number of rows, and these are this task's alone.
            unsafe { s.store_first(self.out.add(row), total, n_rows) };
        }
    }
}

/// Many rows of `x`, packed in tiles, times some panels: bound by arithmetic.
struct Tiles<'a, E> {
    weight: &'a Dense<E>,
    panels: Range<usize>,
    x: &'a [f32],
    m: usize,
    tile_rows: usize,
    out: *mut f32,
}

impl<E: Element> Kernel for Tiles<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.weight.cols;
        let mut block_panel = Buffer::<f32>::zeroed(BLOCK * LANES);
        let rows_in_cache = ROWS_IN_CACHE / self.tile_rows * self.tile_rows;
        for rows_start in (0..self.m).step_by(rows_in_cache) {
            let rows_end = self.m.min(rows_start + rows_in_cache);
            for block in (0..cols).step_by(BLOCK) {
                let n_cols = BLOCK.min(cols - block);
                for panel in self.panels.clone() {
                    for col in 0..n_cols {
                        // SAFETY: the weight has the column, and `block_panel` room for a block of them.
                        unsafe {
                            let w = E::load(s, self.weight.column(panel, block + col));
                            s.store(block_panel.as_mut_ptr().add(col * LANES), w);
                        }
                    }
                    for tile_start in (rows_start..rows_end).step_by(self.tile_rows) {
                        let tile_end = rows_end.min(tile_start + self.tile_rows);
                        self.tile(
                            s,
                            &block_panel[..n_cols * LANES],
                            panel,
                            block,
                            tile_start..tile_end,
                        );
                    }
                }
            }
        }
    }
}

impl<E: Element> Tiles<'_, E> {
    /// Adds the products of one block of columns for one panel and one tile of rows.
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, w: &[f32], panel: usize, block: usize, rows: Range<usize>) {
        match rows.len() {
            1 => self.tile_of::<S, 1>(s, w, panel, block, rows.start),
            2 => self.tile_of::<S, 2>(s, w, panel, block, rows.start),
            3 => self.tile_of::<S, 3>(s, w, panel, block, rows.start),
            4 => self.tile_of::<S, 4>(s, w, panel, block, rows.start),
            5 if S::ACCUMULATORS > 4 => self.tile_of::<S, 5>(s, w, panel, block, rows.start),
            6 if S::ACCUMULATORS > 4 => self.tile_of::<S, 6>(s, w, panel, block, rows.start),
            7 if S::ACCUMULATORS > 6 => self.tile_of::<S, 7>(s, w, panel, block, rows.start),
            8 if S::ACCUMULATORS > 6 => self.tile_of::<S, 8>(s, w, panel, block, rows.start),
            9 if S::ACCUMULATORS > 6 => self.tile_of::<S, 9>(s, w, panel, block, rows.start),
            10 if S::ACCUMULATORS > 6 => self.tile_of::<S, 10>(s, w, panel, block, rows.start),
            11 if S::ACCUMULATORS > 6 => self.tile_of::<S, 11>(s, w, panel, block, rows.start),
            12 if S::ACCUMULATORS > 6 => self.tile_of::<S, 12>(s, w, panel, block, rows.start),
            n => unreachable!("a tile of {n} rows is larger than the registers"),
        }
    }

    #[inline(always)]
    fn tile_of<S: Simd, const M: usize>(&self, s: S, w: &[f32], panel: usize, block: usize, first: usize) {
        let x = &self.x[first * self.weight.cols + block * M..][..w.len() / LANES * M];
        let mut sum = [s.splat(0.0); M];
        for (w, x) in w.chunks_exact(LANES).zip(x.chunks_exact(M)) {
            // SAFETY: the chunk has sixteen values.
            let w = unsafe { s.load(w.as_ptr()) };
            for i in 0..M {
                sum[i] = s.fma(w, s.splat(x[i]), sum[i]);
            }
        }
        let n_rows = LANES.min(self.weight.rows - panel * LANES);
        for (i, sum) in sum.into_iter().enumerate() {
            // SAFETY: `out` is `[m, rows]`, and the panel's rows are this task's alone.
            unsafe {
                let out = self.out.add((first + i) * self.weight.rows + panel * LANES);
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
