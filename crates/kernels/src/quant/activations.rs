//! Rows of `x` as bytes, 32 columns sharing a scale.

use super::X_BLOCK;
use super::blocks::Kind;
use crate::buffer::Buffer;
use crate::level::Kernel;
use crate::simd::Simd;
use crate::threads::{Shared, Threads};

/// Rows cut into tiles of `tile_rows` rows (the last may have fewer), each stored block by block so that a kernel
/// reads it front to back. With `M` rows in a tile:
pub(super) struct Activations {
    pub(super) m: usize,
    pub(super) tile_rows: usize,
    /// Columns, padded with zeros to whole records of the weight.
    pub(super) cols: usize,
    /// `[tile][block][group of 4 columns][M][4]`
    pub(super) codes: Buffer<i8>,
    /// What a code stands for: `[tile][block][M]`
    pub(super) scales: Buffer<f32>,
    /// Sum of a block's codes, times its scale: `[tile][block][M]`
    pub(super) scaled_sums: Buffer<f32>,
    /// Sum of the codes of each block of the weight: `[tile][block of 32 or 16][M]`
    pub(super) sums: Buffer<i32>,
    /// Blocks of the weight in a block.
    pub(super) parts: usize,
}

impl Activations {
    pub(super) fn quantize(
        threads: &Threads,
        x: &[f32],
        x_cols: usize,
        cols: usize,
        tile_rows: usize,
        kind: Kind,
    ) -> Self {
        let m = x.len() / x_cols;
        let n_blocks = cols / X_BLOCK;
        let parts = X_BLOCK / kind.block();
        let mut codes = Buffer::<i8>::zeroed(m * cols);
        let mut scales = Buffer::<f32>::zeroed(m * n_blocks);
        let mut scaled_sums = Buffer::<f32>::zeroed(m * n_blocks);
        let mut sums = Buffer::<i32>::zeroed(m * n_blocks * parts);
        let shared = (
            Shared::new(&mut codes),
            Shared::new(&mut scales),
            Shared::new(&mut scaled_sums),
            Shared::new(&mut sums),
        );
        threads.for_each(m.div_ceil(tile_rows), |tile| {
            let rows = tile * tile_rows..m.min((tile + 1) * tile_rows);
            let n_rows = rows.len();
            // SAFETY: each tile is a part of its own of the buffers, `cols` of a row of codes, and so on.
            let (codes, scales, scaled_sums, sums) = unsafe {
                let part = rows.start * n_blocks;
                (
                    std::slice::from_raw_parts_mut(shared.0.ptr().add(rows.start * cols), n_rows * cols),
                    std::slice::from_raw_parts_mut(shared.1.ptr().add(part), n_rows * n_blocks),
                    std::slice::from_raw_parts_mut(shared.2.ptr().add(part), n_rows * n_blocks),
                    std::slice::from_raw_parts_mut(
                        shared.3.ptr().add(part * parts),
                        n_rows * n_blocks * parts,
                    ),
                )
            };
            for (i, row) in rows.enumerate() {
                threads.run(QuantizeRow {
                    x: &x[row * x_cols..][..x_cols],
                    place: (i, n_rows),
                    parts,
                    codes,
                    scales,
                    scaled_sums,
                    sums,
                });
            }
        });
        Self {
            m,
            tile_rows,
            cols,
            codes,
            scales,
            scaled_sums,
            sums,
            parts,
        }
    }
}

/// One row into its place of a tile.
struct QuantizeRow<'a> {
    x: &'a [f32],
    /// Which row of how many.
    place: (usize, usize),
    parts: usize,
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    scaled_sums: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Kernel for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (i, n_rows) = self.place;
        for (block, x) in self.x.chunks(X_BLOCK).enumerate() {
            let (codes, scale) = quantize_block(x);
            let to = self.codes[block * X_BLOCK * n_rows..][..X_BLOCK * n_rows].chunks_exact_mut(4 * n_rows);
            for (codes, to) in codes.as_chunks::<4>().0.iter().zip(to) {
                to[4 * i..][..4].copy_from_slice(codes);
            }
            let mut total = 0;
            for (part, codes) in codes.chunks_exact(X_BLOCK / self.parts).enumerate() {
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                self.sums[(block * self.parts + part) * n_rows + i] = sum;
                total += sum;
            }
            self.scales[block * n_rows + i] = scale;
            self.scaled_sums[block * n_rows + i] = scale * total as f32;
        }
    }
}

/// Up to 32 values as `code · scale`, codes from -127 to 127. A NaN or an infinity makes the scale not finite, so it
/// is not lost.
#[inline(always)]
fn quantize_block(x: &[f32]) -> ([i8; X_BLOCK], f32) {
    let mut values = [0.0; X_BLOCK];
    values[..x.len()].copy_from_slice(x);
    // Compared as bits, a NaN is larger than any number.
    let largest = values
        .iter()
        .fold(0, |largest, x| (x.to_bits() & 0x7fff_ffff).max(largest));
    let largest = f32::from_bits(largest);
    let scale = largest / 127.0;
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    // Adding this leaves no bits for a fraction; the whole number is what remains in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // A loop, because an array's `map` is a function of its own, compiled without this level's instructions.
    let mut codes = [0; X_BLOCK];
    for (code, x) in codes.iter_mut().zip(values) {
        *code = (x * inverse + ROUND).to_bits() as i8;
    }
    (codes, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_within_half_a_step_of_its_values() {
        let x: Vec<f32> = (0..32).map(|i| ((i * 37) % 32) as f32 - 17.3).collect();
        let (codes, scale) = quantize_block(&x);
        assert_eq!(codes.iter().map(|c| c.unsigned_abs()).max(), Some(127));
        for (x, code) in x.iter().zip(codes) {
            assert!((x - f32::from(code) * scale).abs() <= 0.5001 * scale);
        }
    }

    #[test]
    fn a_block_of_zeros_is_zeros() {
        assert_eq!(quantize_block(&[0.0; 7]), ([0; 32], 0.0));
    }

    #[test]
    fn a_block_with_tiny_numbers_has_codes_in_range() {
        let (codes, scale) = quantize_block(&[1e-40, -1e-40, f32::MIN_POSITIVE]);
        assert!(scale.is_finite() && codes.iter().all(|&code| code != -128));
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!quantize_block(&[1.0, bad, 2.0]).1.is_finite());
        }
    }
}
