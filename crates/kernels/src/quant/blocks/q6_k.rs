//! Q6_K: sixteen blocks of sixteen six-bit codes, each with a signed byte as scale, and a factor for all.

use super::{
    BLOCK_CODES, BLOCK_NIBBLES, Blocks, GgmlBlocks, Kind, Unpacked, code_place, pack_nibbles, put_u16,
    read_f16,
};
use crate::level::{Cpu, Kernel};
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

impl Blocks for Q6K {
    fn kind(&self) -> Kind {
        Kind::Bytes16
    }

    fn cols(&self) -> usize {
        256
    }

    fn record_bytes(&self) -> usize {
        RECORD
    }

    fn unpack(&self, cpu: Cpu, records: &[u8], to: &mut Unpacked) {
        cpu.run(Unpack { records, to });
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

struct Unpack<'a> {
    records: &'a [u8],
    to: &'a mut Unpacked,
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let codes = self.to.codes.chunks_exact_mut(8 * BLOCK_CODES);
        let scales = self.to.scales.chunks_exact_mut(16 * LANES);
        for (record, (codes, scales)) in self.records.chunks_exact(RECORD).zip(codes.zip(scales)) {
            for (columns, codes) in record[..SCALES]
                .chunks_exact(COLUMNS_32)
                .zip(codes.chunks_exact_mut(BLOCK_CODES))
            {
                let (lower, upper) = columns.split_at(BLOCK_NIBBLES);
                let (first, second) = codes.split_at_mut(BLOCK_NIBBLES);
                spread(lower, &upper[..4 * LANES], 0, first);
                spread(lower, &upper[4 * LANES..], 4, second);
            }
            // SAFETY: the record holds sixteen f16 there.
            let d = unsafe { s.load_f16(record.as_ptr().add(D).cast()) };
            for (bytes, scales) in record[SCALES..D]
                .chunks_exact(LANES)
                .zip(scales.chunks_exact_mut(LANES))
            {
                for lane in 0..LANES {
                    scales[lane] = f32::from(bytes[lane] as i8);
                }
                // SAFETY: the chunk holds sixteen values.
                unsafe { s.store(scales.as_mut_ptr(), s.mul(d, s.load(scales.as_ptr()))) };
            }
        }
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
