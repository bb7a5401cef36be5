//! Products with weights stored as f32, bf16 or f16.
//!
//! Weights are packed once into panels of sixteen rows, [`step`](weight) by step: `[panel][step][16][columns of a
//! step]`, zeros below the last row and beyond the last column. So a vector holds sixteen rows, and no sum is ever taken
//! across lanes. Each row of the result is a sum over columns in ascending order, in blocks of [`BLOCK`] columns whose
//! sums are then added up in ascending order too. The matrix–vector and the matrix–matrix kernel both do exactly this,
//! so they agree to the bit.
//!
//! Weights in bf16 are multiplied with `x` rounded to bf16, as the models they come from do in training. Products of two
//! such numbers are exact in f32, and where a processor has an instruction for two of them it adds them as two fused
//! multiply–adds would: so all levels agree to the bit here too. What is below the smallest normal number counts as zero,
//! in the weights and in `x`; the instruction takes sums for zero that are so small, the other levels do not.

mod weight;

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::buffer::Buffer;
use crate::level::Kernel;
use crate::simd::{LANES, Simd};
use crate::threads::{Shared, Threads};

pub(crate) use self::weight::Weight;

/// Columns whose products are summed before they join the total: a panel's block, and that of a tile of rows, fit the
/// first-level cache.
const BLOCK: usize = 256;

/// Rows of `x` whose block should stay in the second-level cache while the panels pass by.
const ROWS_IN_CACHE: usize = 192;

/// Panels that the kernel for few rows reads at a time: enough independent sums to hide the latency of one.
const STREAMS: usize = 4;

/// Most rows of `x` that are multiplied while the weight passes by once.
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

impl<E: Weight> Dense<E> {
    /// Packs rows that `values(row)` goes through from the first column to the last.
    pub(crate) fn pack<I: Iterator<Item = E>>(
        threads: &Threads,
        (rows, cols): (usize, usize),
        values: impl Fn(usize) -> I + Sync + Send,
    ) -> Self {
        let n_panels = rows.div_ceil(LANES);
        let panel_len = cols.div_ceil(E::COLUMNS) * LANES * E::COLUMNS;
        let mut panels = Buffer::<E>::zeroed_in_large_pages(n_panels * panel_len);
        let packed = Shared::new(&mut panels);
        threads.for_each(n_panels, |panel| {
            // SAFETY: each panel is a part of its own of the buffer.
            let places =
                unsafe { std::slice::from_raw_parts_mut(packed.ptr().add(panel * panel_len), panel_len) };
            let first_row = panel * LANES;
            for (lane, row) in (first_row..rows.min(first_row + LANES)).enumerate() {
                for (col, value) in values(row).take(cols).enumerate() {
                    places[place::<E>(col, lane)] = value.stored();
                }
            }
        });
        Self { rows, cols, panels }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val::<[E]>(&self.panels)
    }

    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let panel = &self.panels[row / LANES * self.panel_len()..][..self.panel_len()];
        for (col, out) in out.iter_mut().enumerate() {
            *out = panel[place::<E>(col, row % LANES)].to_f32();
        }
    }

    fn steps(&self) -> usize {
        self.cols.div_ceil(E::COLUMNS)
    }

    fn panel_len(&self) -> usize {
        self.steps() * LANES * E::COLUMNS
    }

    /// `out[i, r] = Σ x[i, c] · w[r, c]`, written whole; shapes are the caller's to check.
    pub(crate) fn matmul(&self, threads: &Threads, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let m = out.len() / self.rows;
        let n_panels = self.rows.div_ceil(LANES);
        let panels_per_task = threads.share(n_panels, STREAMS, self.panel_len() * size_of::<E>());
        let n_tasks = n_panels.div_ceil(panels_per_task);
        let panels_of = |task: usize| task * panels_per_task..n_panels.min((task + 1) * panels_per_task);
        let few = m <= FEW_ROWS;
        let tile_rows = if few { m } else { threads.run(TileRows) };
        let x = Tiles::<E>::pack(threads, x, self.cols, tile_rows);
        let out = Shared::new(out);
        if few {
            threads.for_each(n_tasks, |task| {
                threads.run(FewRows {
                    weight: self,
                    panels: panels_of(task),
                    x: &x,
                    out: out.ptr().cast(),
                });
            });
            return;
        }
        let rows_in_cache = ROWS_IN_CACHE / tile_rows * tile_rows;
        threads.for_each(n_tasks, |task| {
            for first_row in (0..m).step_by(rows_in_cache) {
                let x_rows = first_row..m.min(first_row + rows_in_cache);
                for steps in blocks::<E>(self.steps()) {
                    let panels = panels_of(task);
                    for panel in panels.clone().step_by(2) {
                        threads.run(ManyRows {
                            weight: self,
                            panels: panel..panels.end.min(panel + 2),
                            steps: steps.clone(),
                            x: &x,
                            x_rows: x_rows.clone(),
                            out: out.ptr().cast(),
                        });
                    }
                }
            }
        });
    }

    /// # Safety
    /// `panel` is one of the weight's and `step` at most the number of steps.
    #[inline(always)]
    unsafe fn step(&self, panel: usize, step: usize) -> *const E {
        // SAFETY: in bounds, says the caller.
        unsafe {
            self.panels
                .as_ptr()
                .add((panel * self.steps() + step) * LANES * E::COLUMNS)
        }
    }
}

/// Where a weight lies in its panel.
fn place<E: Weight>(col: usize, lane: usize) -> usize {
    (col / E::COLUMNS * LANES + lane) * E::COLUMNS + E::place(col % E::COLUMNS)
}

/// The blocks of so many steps.
#[inline(always)]
fn blocks<E: Weight>(steps: usize) -> impl Iterator<Item = Range<usize>> {
    let length = BLOCK / E::COLUMNS;
    (0..steps)
        .step_by(length)
        .map(move |first| first..steps.min(first + length))
}

struct TileRows;

impl Kernel for TileRows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::ACCUMULATORS
    }
}

/// `x` cut into tiles of `tile_rows` rows (the last may have fewer), each stored step by step: `[tile][step][row][words
/// of a step]`.
struct Tiles<E> {
    m: usize,
    tile_rows: usize,
    words: Buffer<u32>,
    of: std::marker::PhantomData<E>,
}

impl<E: Weight> Tiles<E> {
    fn pack(threads: &Threads, x: &[f32], cols: usize, tile_rows: usize) -> Self {
        /// Columns of a task, whole steps of any weight.
        const COLUMNS: usize = 2048;
        let (m, steps) = (x.len() / cols, cols.div_ceil(E::COLUMNS));
        let words_of_step = threads.run(Words::<E>(std::marker::PhantomData));
        let mut words = Buffer::<u32>::zeroed(m * steps * words_of_step);
        let packed = Shared::new(&mut words);
        let parts = cols.div_ceil(COLUMNS);
        threads.for_each(m.div_ceil(tile_rows) * parts, |task| {
            let (first, first_col) = (task / parts * tile_rows, task % parts * COLUMNS);
            let n_rows = tile_rows.min(m - first);
            let n_cols = COLUMNS.min(cols - first_col);
            let first_step = first_col / E::COLUMNS;
            let n_words = n_cols.div_ceil(E::COLUMNS) * n_rows * words_of_step;
            // SAFETY: each tile's columns of a task are a part of their own of the buffer.
            let words = unsafe {
                let start = (first * steps + first_step * n_rows) * words_of_step;
                std::slice::from_raw_parts_mut(packed.ptr().add(start), n_words)
            };
            for i in 0..n_rows {
                threads.run(PackRow::<E> {
                    x: &x[(first + i) * cols + first_col..][..n_cols],
                    place: (i, n_rows),
                    words,
                    of: std::marker::PhantomData,
                });
            }
        });
        Self {
            m,
            tile_rows,
            words,
            of: std::marker::PhantomData,
        }
    }
}

/// Words of a row of `x` a step.
struct Words<E>(std::marker::PhantomData<E>);

impl<E: Weight> Kernel for Words<E> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        E::words::<S>()
    }
}

/// Some columns of a row into its place of a tile.
struct PackRow<'a, E> {
    x: &'a [f32],
    /// Which row of how many.
    place: (usize, usize),
    words: &'a mut [u32],
    of: std::marker::PhantomData<E>,
}

impl<E: Weight> Kernel for PackRow<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (i, n_rows) = self.place;
        let n_words = E::words::<S>();
        let steps = self.words.chunks_exact_mut(n_rows * n_words);
        for (x, words) in self.x.chunks(E::COLUMNS).zip(steps) {
            E::pack::<S>(x, &mut words[i * n_words..][..n_words]);
        }
    }
}

/// Few rows of `x`, one tile, times some panels: bound by reading the weight.
struct FewRows<'a, E> {
    weight: &'a Dense<E>,
    panels: Range<usize>,
    x: &'a Tiles<E>,
    out: *mut f32,
}

impl<E: Weight> Kernel for FewRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x.m {
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

impl<E: Weight> FewRows<'_, E> {
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
        let step_bytes = LANES * E::COLUMNS * size_of::<E>();
        let x = &self.x.words[..self.weight.steps() * M * E::words::<S>()];
        let mut total = [[s.splat(0.0); M]; P];
        for steps in blocks::<E>(self.weight.steps()) {
            let mut sums = [[s.splat(0.0); M]; P];
            // SAFETY: `first .. first + P` are panels of the weight.
            let panels: [*const E; P] =
                std::array::from_fn(|p| unsafe { self.weight.step(first + p, steps.start) });
            for step in steps.clone() {
                // SAFETY: the step is one of the weight's, and `x` holds `M` rows of it.
                unsafe {
                    let x = x.as_ptr().add(step * M * E::words::<S>());
                    let offset = (step - steps.start) * LANES * E::COLUMNS;
                    let w = panels.map(
                        #[inline(always)]
                        |panel| panel.add(offset),
                    );
                    if ((step - steps.start) * step_bytes).is_multiple_of(64) {
                        for w in w {
                            s.prefetch(w.wrapping_byte_add(AHEAD).cast());
                        }
                    }
                    E::step(s, w, x, &mut sums);
                }
            }
            for p in 0..P {
                for i in 0..M {
                    total[p][i] = if steps.start == 0 {
                        sums[p][i]
                    } else {
                        s.add(total[p][i], sums[p][i])
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

/// One block of one panel or two times many rows of `x`, packed in tiles: bound by arithmetic.
struct ManyRows<'a, E> {
    weight: &'a Dense<E>,
    panels: Range<usize>,
    /// Those of the block.
    steps: Range<usize>,
    x: &'a Tiles<E>,
    /// Whole tiles.
    x_rows: Range<usize>,
    out: *mut f32,
}

impl<E: Weight> Kernel for ManyRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Two panels share the reading of `x`, where registers hold so many sums and the cache two panels' blocks.
        if self.panels.len() == 2 && S::ACCUMULATORS >= 12 && size_of::<E>() == 2 {
            self.tiles::<S, 2>(s, self.panels.start);
        } else {
            self.panels.clone().for_each(|panel| self.tiles::<S, 1>(s, panel));
        }
    }
}

impl<E: Weight> ManyRows<'_, E> {
    #[inline(always)]
    fn tiles<S: Simd, const P: usize>(&self, s: S, panel: usize) {
        for first in self.x_rows.clone().step_by(self.x.tile_rows) {
            match self.x.tile_rows.min(self.x_rows.end - first) {
                1 => self.tile::<S, P, 1>(s, panel, first),
                2 => self.tile::<S, P, 2>(s, panel, first),
                3 => self.tile::<S, P, 3>(s, panel, first),
                4 => self.tile::<S, P, 4>(s, panel, first),
                5 if S::ACCUMULATORS > 4 => self.tile::<S, P, 5>(s, panel, first),
                6 if S::ACCUMULATORS > 4 => self.tile::<S, P, 6>(s, panel, first),
                7 if S::ACCUMULATORS > 6 => self.tile::<S, P, 7>(s, panel, first),
                8 if S::ACCUMULATORS > 6 => self.tile::<S, P, 8>(s, panel, first),
                9 if S::ACCUMULATORS > 6 => self.tile::<S, P, 9>(s, panel, first),
                10 if S::ACCUMULATORS > 6 => self.tile::<S, P, 10>(s, panel, first),
                11 if S::ACCUMULATORS > 6 => self.tile::<S, P, 11>(s, panel, first),
                12 if S::ACCUMULATORS > 6 => self.tile::<S, P, 12>(s, panel, first),
                n => unreachable!("a tile of {n} rows is larger than the registers"),
            }
        }
    }

    /// Adds the products of `P` panels for `M` rows of `x` from `first` on.
    #[inline(always)]
    fn tile<S: Simd, const P: usize, const M: usize>(&self, s: S, panel: usize, first: usize) {
        let (rows, steps) = (self.weight.rows, self.weight.steps());
        let n_words = E::words::<S>();
        let x = &self.x.words[(first * steps + self.steps.start * M) * n_words..];
        let x = &x[..self.steps.len() * M * n_words];
        let mut sums = [[s.splat(0.0); M]; P];
        // SAFETY: the panels are of the weight, as the steps are; `x` holds `M` rows of them.
        unsafe {
            let panels: [*const E; P] =
                std::array::from_fn(|p| self.weight.step(panel + p, self.steps.start));
            for step in 0..self.steps.len() {
                let w = panels.map(
                    #[inline(always)]
                    |panel| panel.add(step * LANES * E::COLUMNS),
                );
                E::step(s, w, x.as_ptr().add(step * M * n_words), &mut sums);
            }
        }
        let is_first = self.steps.start == 0;
        for p in 0..P {
            let first_row = (panel + p) * LANES;
            let n_rows = LANES.min(rows - first_row);
            for i in 0..M {
                let sum = sums[p][i];
                // SAFETY: `out` is `[m, rows]`, and the panels' rows are this task's alone.
                unsafe {
                    let out = self.out.add((first + i) * rows + first_row);
                    if n_rows == LANES {
                        s.store(out, if is_first { sum } else { s.add(s.load(out), sum) });
                    } else {
                        let total = if is_first {
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
}
