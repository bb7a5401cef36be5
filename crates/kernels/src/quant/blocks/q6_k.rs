//! Q6_K: sixteen blocks of sixteen six-bit codes, each with a signed byte as scale, and a factor for all.

use super::{
    BLOCK_CODES, BLOCK_NIBBLES, GgmlBlocks, Kind, Record, code_place, pack_nibbles, put_u16, read_f16,
};
use crate::simd::{LANES, Simd};

/// Record: for each 32 columns the lower four bits as nibbles and the upper two, then scales as `[block][16]`, then d
/// as f16.
#[derive(Debug)]
pub(crate) struct Q6K;

/// Upper bits of 32 columns: byte `[half of 16 columns][16][4]` has those of four groups of four columns.
const BLOCK_UPPER: usize = BLOCK_CODES / 4;
const COLUMNS_32: usize = BLOCK_NIBBLES + BLOCK_UPPER;
const SCALES: usize = 8 * COLUMNS_32;
const D: usize = SCALES + 16 * LANES;
const RECORD: usize = D + 2 * LANES;

impl Record for Q6K {
    const KIND: Kind = Kind::Bytes16;
    /// d.
    type Head<S: Simd> = S::V;

    fn cols(&self) -> usize {
        256
    }

    fn record_bytes(&self) -> usize {
        RECORD
    }

    #[inline(always)]
    unsafe fn head<S: Simd>(&self, s: S, record: *const u8) -> S::V {
        // SAFETY: the record holds sixteen f16 there.
        unsafe { s.load_f16(record.add(D).cast()) }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, s: S, record: *const u8, d: S::V, block: usize) -> (S::V, S::V) {
        // SAFETY: the record holds sixteen bytes for each block there.
        let scale = unsafe { s.load_i8(record.add(SCALES + block * LANES).cast()) };
        (s.mul(d, scale), s.splat(0.0))
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const M: usize>(
        &self,
        s: S,
        record: *const u8,
        block: usize,
        x: *const i8,
        x_sums: *const i32,
    ) -> [S::I; M] {
        // SAFETY: two blocks share their nibbles and have upper bits of their own; the rest is the caller's.
        unsafe {
            let nibbles = record.add(block / 2 * COLUMNS_32);
            let twos = nibbles.add(BLOCK_NIBBLES + block % 2 * (BLOCK_UPPER / 2));
            if block.is_multiple_of(2) {
                s.dot_six::<M, false>(nibbles, twos, x, x_sums)
            } else {
                s.dot_six::<M, true>(nibbles, twos, x, x_sums)
            }
        }
    }

    #[inline(always)]
    fn spread(&self, record: &[u8], columns: usize, to: &mut [u8]) {
        let (lower, upper) = record[columns * COLUMNS_32..][..COLUMNS_32].split_at(BLOCK_NIBBLES);
        let (first, second) = to.split_at_mut(BLOCK_NIBBLES);
        spread(lower, &upper[..4 * LANES], 0, first);
        spread(lower, &upper[4 * LANES..], 4, second);
    }
}

/// The code of a column, 0 to 63. A block is two halves of 128 columns; in a half, byte `c` of 64 has the lower bits of
/// columns `c` and `64 + c`, byte `c` of 32 the upper bits of columns `c`, `32 + c`, `64 + c` and `96 + c`.
fn code(block: &[u8], col: usize) -> u8 {
    let (half, c) = (col / 128, col % 128);
    let lower = block[half * 64 + c % 64] >> (c / 64 * 4) & 15;
    let upper = block[128 + half * 32 + c % 32] >> (c / 32 * 2) & 3;
    lower | upper << 4
}

impl GgmlBlocks for Q6K {
    fn block_bytes(&self) -> usize {
        210
    }

    fn pack(&self, block: &[u8], lane: usize, record: &mut [u8]) {
        for (i, columns) in record[..SCALES].chunks_exact_mut(COLUMNS_32).enumerate() {
            let codes: [u8; 32] = std::array::from_fn(|c| code(block, 32 * i + c));
            let nibbles = std::array::from_fn(|c| codes[c] & 15 | (codes[c + 16] & 15) << 4);
            let (lower, upper) = columns.split_at_mut(BLOCK_NIBBLES);
            pack_nibbles(&nibbles, lane, lower);
            for (c, code) in codes.iter().enumerate() {
                upper[code_place(c / 16 * 4 + c % 4, lane)] |= code >> 4 << (c % 16 / 4 * 2);
            }
        }
        for i in 0..16 {
            record[SCALES + i * LANES + lane] = block[192 + i];
        }
        put_u16(&mut record[D..], lane, read_f16(&block[208..]).to_bits());
    }
}

/// Sixteen columns' codes less 32: `nibbles` of four groups of columns, one half of each byte, and two bits for each
/// group in `upper`.
#[inline(always)]
fn spread(nibbles: &[u8], upper: &[u8], shift: u32, to: &mut [u8]) {
    let groups = nibbles
        .chunks_exact(4 * LANES)
        .zip(to.chunks_exact_mut(4 * LANES));
    for (group, (nibbles, to)) in groups.enumerate() {
        for ((to, nibble), upper) in to.iter_mut().zip(nibbles).zip(upper) {
            *to = (nibble >> shift & 15 | (upper >> (2 * group) & 3) << 4).wrapping_sub(32);
        }
    }
}
