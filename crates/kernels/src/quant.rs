//! Products with weights in small integers, blocks of which share a scale.
//!
//! Weights are packed once into panels of sixteen rows, as [`crate::dense`] does, but in records: all that some
//! columns of sixteen rows need, codes and scales, in one piece of memory, at the size the format has in a file.
//! See [`blocks`] for the formats.
//!
//! A product rounds each row of `x` to bytes, 32 columns sharing a scale ([`activations`]). Sums within a block of
//! weights are then whole numbers, exact in any order and on any CPU; blocks are added up as f32 in ascending order.
//! One kernel does this for many rows of `x` ([`kernel`]) and one for a few ([`stream`]), in the same order, so both
//! agree to the bit.
//!
//! The rounding of `x` is all that is lost against a product with the dequantised weights: half a step, 1/254 of
//! the largest magnitude among 32 columns, for each of them. So
//! `|error| ≤ Σ_blocks (max |x| / 254) · Σ_columns |w|`, besides f32's own rounding.

mod activations;
pub(crate) mod blocks;
mod encode;
mod format;
mod kernel;
mod stream;

use std::mem::MaybeUninit;
use std::ops::Deref;

use crate::buffer::Buffer;
use crate::level::{Cpu, Kernel};
use crate::mapped::MappedBytes;
use crate::simd::{LANES, Simd};
use crate::threads::{Shared, Threads};

use self::activations::Activations;
use self::blocks::{Blocks, Unpacked, View};
pub use self::format::GgmlFormat;
use self::kernel::{IntTiles, Place, TileRows};
use self::stream::Stream;

/// Columns that share a scale in `x`.
const X_BLOCK: usize = 32;

/// Columns that are unpacked at a time.
const COLUMNS: usize = 512;

/// Rows of `x` whose columns should stay in the second-level cache while the panels pass by.
const ROWS_IN_CACHE: usize = 192;

/// A packed `[rows, cols]` weight.
#[derive(Debug)]
pub(crate) struct Quantized {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `[panel][record]`
    records: Records,
    blocks: Box<dyn Blocks>,
    cpu: Cpu,
}

/// A weight's records, in memory of their own or in a file.
#[derive(Debug)]
enum Records {
    Owned(Buffer<u8>),
    Mapped(MappedBytes),
}

impl Deref for Records {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Records::Owned(bytes) => bytes,
            Records::Mapped(bytes) => bytes,
        }
    }
}

impl Quantized {
    /// Packs panel by panel; `fill(panel, records)` writes the records of a panel.
    pub(crate) fn pack(
        threads: &Threads,
        (rows, cols): (usize, usize),
        blocks: Box<dyn Blocks>,
        fill: impl Fn(usize, &mut [u8]) + Sync + Send,
    ) -> Self {
        let panel_bytes = cols.div_ceil(blocks.cols()) * blocks.record_bytes();
        let n_panels = rows.div_ceil(LANES);
        let mut records = Buffer::<u8>::zeroed_in_large_pages(n_panels * panel_bytes);
        let packed = Shared::new(&mut records);
        threads.for_each(n_panels, |panel| {
            // SAFETY: each panel is a part of its own of the buffer.
            let panel_records =
                unsafe { std::slice::from_raw_parts_mut(packed.ptr().add(panel * panel_bytes), panel_bytes) };
            fill(panel, panel_records);
        });
        Self {
            rows,
            cols,
            records: Records::Owned(records),
            blocks,
            cpu: threads.cpu(),
        }
    }

    /// Records that lie in a file, [`Self::len`] bytes.
    pub(crate) fn mapped(
        threads: &Threads,
        (rows, cols): (usize, usize),
        format: GgmlFormat,
        bytes: MappedBytes,
    ) -> Self {
        let blocks = format.blocks();
        debug_assert_eq!(bytes.len(), Self::len(&*blocks, (rows, cols)));
        Self {
            rows,
            cols,
            records: Records::Mapped(bytes),
            blocks,
            cpu: threads.cpu(),
        }
    }

    /// Bytes of all records.
    pub(crate) fn len(blocks: &dyn Blocks, (rows, cols): (usize, usize)) -> usize {
        rows.div_ceil(LANES) * cols.div_ceil(blocks.cols()) * blocks.record_bytes()
    }

    pub(crate) fn records(&self) -> &[u8] {
        &self.records
    }

    /// Packs ggml's blocks; `row(row, blocks)` writes those of a row.
    pub(crate) fn pack_ggml(
        threads: &Threads,
        (rows, cols): (usize, usize),
        format: GgmlFormat,
        row: impl Fn(usize, &mut [u8]) + Sync + Send,
    ) -> Self {
        let blocks = format.blocks();
        Self::pack(threads, (rows, cols), format.blocks(), |panel, records| {
            let mut row_blocks = vec![0; format.row_bytes(cols)];
            for (lane, r) in (panel * LANES..rows.min((panel + 1) * LANES)).enumerate() {
                row(r, &mut row_blocks);
                let each_block = row_blocks.chunks_exact(blocks.block_bytes());
                for (block, record) in each_block.zip(records.chunks_exact_mut(blocks.record_bytes())) {
                    blocks.pack(block, lane, record);
                }
            }
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.records.len()
    }

    fn panel_bytes(&self) -> usize {
        self.cols.div_ceil(self.blocks.cols()) * self.blocks.record_bytes()
    }

    pub(crate) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        let (record_bytes, record_cols) = (self.blocks.record_bytes(), self.blocks.cols());
        let records = &self.records[panel * self.panel_bytes()..][..self.panel_bytes()];
        let mut unpacked = Unpacked::new(&*self.blocks, record_cols);
        for (record, out) in records
            .chunks_exact(record_bytes)
            .zip(out.chunks_mut(record_cols))
        {
            self.blocks.unpack(self.cpu, record, &mut unpacked);
            for (col, out) in out.iter_mut().enumerate() {
                *out = unpacked.value(&*self.blocks, record, col, lane);
            }
        }
    }

    /// `out[i, r] = Σ x[i, c] · w[r, c]`, written whole; shapes are the caller's to check.
    pub(crate) fn matmul(&self, threads: &Threads, x: &[f32], out: &mut [MaybeUninit<f32>]) {
        let m = out.len() / self.rows;
        let blocks = &*self.blocks;
        let few = m <= threads.run(TileRows { many: false });
        let tile_rows = if few {
            m
        } else {
            threads.run(TileRows { many: true })
        };
        let record_cols = blocks.cols();
        let padded_cols = self.cols.next_multiple_of(record_cols);
        let x = Activations::quantize(threads, x, self.cols, padded_cols, tile_rows, blocks.kind());
        if few {
            return self.stream(threads, &x, out);
        }
        let chunk_records = (COLUMNS / record_cols).max(1);
        let rows_in_cache = ROWS_IN_CACHE / tile_rows * tile_rows;

        let n_panels = self.rows.div_ceil(LANES);
        let panels_per_task = n_panels.div_ceil(threads.count() * if threads.count() == 1 { 1 } else { 8 });
        let panels_per_task = panels_per_task.next_multiple_of(2);
        let out = Shared::new(out);
        threads.for_each(n_panels.div_ceil(panels_per_task), |task| {
            let panels = task * panels_per_task..n_panels.min((task + 1) * panels_per_task);
            let mut unpacked = [0, 1].map(|_| Unpacked::new(blocks, chunk_records * record_cols));
            for first_row in (0..m).step_by(rows_in_cache) {
                let x_rows = first_row..m.min(first_row + rows_in_cache);
                for first_col in (0..padded_cols).step_by(chunk_records * record_cols) {
                    let columns = (first_col / record_cols, chunk_records);
                    for panel in panels.clone().step_by(2) {
                        let place = Place {
                            panel,
                            first_col,
                            x_rows: x_rows.clone(),
                            rows: self.rows,
                        };
                        let [first, second] = &mut unpacked;
                        let w = self.unpack(threads, panel, columns, first);
                        if panel + 1 == panels.end {
                            threads.run(IntTiles {
                                w: [w],
                                x: &x,
                                place,
                                out: out.ptr().cast(),
                            });
                            continue;
                        }
                        let w = [w, self.unpack(threads, panel + 1, columns, second)];
                        if panel + 2 < panels.end {
                            threads.run(Prefetch(self.records_of(panel + 2, columns)));
                        }
                        if panel + 3 < panels.end {
                            threads.run(Prefetch(self.records_of(panel + 3, columns)));
                        }
                        threads.run(IntTiles {
                            w,
                            x: &x,
                            place,
                            out: out.ptr().cast(),
                        });
                    }
                }
            }
        });
    }

    /// Up to `n` records of a panel from one on.
    fn records_of(&self, panel: usize, (first, n): (usize, usize)) -> &[u8] {
        let panel_records = &self.records[panel * self.panel_bytes()..][..self.panel_bytes()];
        let rest = &panel_records[first * self.blocks.record_bytes()..];
        &rest[..rest.len().min(n * self.blocks.record_bytes())]
    }

    /// Unpacks them.
    fn unpack<'a>(
        &'a self,
        threads: &Threads,
        panel: usize,
        columns: (usize, usize),
        to: &'a mut Unpacked,
    ) -> View<'a> {
        let records = self.records_of(panel, columns);
        self.blocks.unpack(threads.cpu(), records, to);
        to.view(&*self.blocks, records)
    }

    /// The product with one tile of rows.
    fn stream(&self, threads: &Threads, x: &Activations, out: &mut [MaybeUninit<f32>]) {
        let n_panels = self.rows.div_ceil(LANES);
        let panels_per_task = threads.share(n_panels, 4, self.panel_bytes());
        let out = Shared::new(out);
        threads.for_each(n_panels.div_ceil(panels_per_task), |task| {
            let panels = task * panels_per_task..n_panels.min((task + 1) * panels_per_task);
            let job = Stream {
                records: &self.records,
                panels,
                rows: self.rows,
                x,
                out: out.ptr().cast(),
            };
            self.blocks.stream(threads.cpu(), &job);
        });
    }
}

/// Asks for records that are needed soon.
struct Prefetch<'a>(&'a [u8]);

impl Kernel for Prefetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.chunks(64).for_each(|line| s.prefetch(line.as_ptr()));
    }
}

#[cfg(test)]
mod tests;
