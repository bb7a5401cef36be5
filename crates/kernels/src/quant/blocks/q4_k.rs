//! Q4_K: eight blocks of 32 nibbles, each with a scale and a minimum of six bits, and a factor for either.

use super::{BLOCK_NIBBLES, GgmlBlocks, Kind, Record, pack_nibbles, put_u16, read_f16, spread_nibbles};
use crate::simd::{LANES, Simd};

/// Record: nibbles of eight blocks, scales and then minima a byte each as `[block][16]`, d and dmin as f16.
#[derive(Debug)]
pub(crate) struct Q4K;

const BLOCKS: usize = 8;
const SCALES: usize = BLOCKS * BLOCK_NIBBLES;
const MINS: usize = SCALES + BLOCKS * LANES;
const D: usize = MINS + BLOCKS * LANES;
const DMIN: usize = D + 2 * LANES;
const RECORD: usize = DMIN + 2 * LANES;

impl Record for Q4K {
    const KIND: Kind = Kind::Nibbles;
    /// d and dmin.
    type Head<S: Simd> = (S::V, S::V);

    fn cols(&self) -> usize {
        256
    }

    fn record_bytes(&self) -> usize {
        RECORD
    }

    #[inline(always)]
    unsafe fn head<S: Simd>(&self, s: S, record: *const u8) -> (S::V, S::V) {
        // SAFETY: the record holds sixteen f16 in either place.
        let (d, dmin) = unsafe {
            (
                s.load_f16(record.add(D).cast()),
                s.load_f16(record.add(DMIN).cast()),
            )
        };
        (d, s.sub(s.splat(0.0), dmin))
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(
        &self,
        s: S,
        record: *const u8,
        (d, minus_dmin): (S::V, S::V),
        block: usize,
    ) -> (S::V, S::V) {
        // SAFETY: the record holds sixteen bytes for each block in either place.
        let (scale, min) = unsafe {
            (
                s.load_u8(record.add(SCALES + block * LANES)),
                s.load_u8(record.add(MINS + block * LANES)),
            )
        };
        (s.mul(d, scale), s.mul(minus_dmin, min))
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const M: usize>(
        &self,
        s: S,
        record: *const u8,
        block: usize,
        x: *const i8,
        _: *const i32,
    ) -> [S::I; M] {
        // SAFETY: the blocks' nibbles start the record, `x` is the caller's.
        unsafe { s.dot_nibbles::<M>(record.add(block * BLOCK_NIBBLES), x, [0; M]) }
    }

    #[inline(always)]
    fn spread(&self, record: &[u8], columns: usize, to: &mut [u8]) {
        spread_nibbles(&record[columns * BLOCK_NIBBLES..], to);
    }
}

/// Scale and minimum of block `i` out of the twelve bytes they share: the first four blocks have the low six bits of
/// bytes 0–3 and 4–7, the others a nibble each of bytes 8–11 and the two bits left in the former.
fn scale_and_min(bytes: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (bytes[i] & 63, bytes[i + 4] & 63)
    } else {
        (
            bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4,
            bytes[i + 4] >> 4 | bytes[i] >> 6 << 4,
        )
    }
}

impl GgmlBlocks for Q4K {
    fn block_bytes(&self) -> usize {
        144
    }

    fn pack(&self, block: &[u8], lane: usize, record: &mut [u8]) {
        put_u16(&mut record[D..], lane, read_f16(block).to_bits());
        put_u16(&mut record[DMIN..], lane, read_f16(&block[2..]).to_bits());
        for i in 0..BLOCKS {
            let (scale, min) = scale_and_min(&block[4..16], i);
            record[SCALES + i * LANES + lane] = scale;
            record[MINS + i * LANES + lane] = min;
            // Byte `c` of each 32 holds column `c` of an even block, and of the odd block after it.
            let columns = &block[16 + i / 2 * 32..][..32];
            let nibble = |c: usize| columns[c] >> (i % 2 * 4) & 15;
            let nibbles = std::array::from_fn(|c| nibble(c) | nibble(c + 16) << 4);
            pack_nibbles(&nibbles, lane, &mut record[i * BLOCK_NIBBLES..]);
        }
    }
}
