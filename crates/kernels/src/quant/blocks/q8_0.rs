//! Q8_0: 32 signed bytes and their scale. Codes are read in place.

use super::{BLOCK_CODES, GgmlBlocks, Kind, Record, code_place, put_u16, read_f16};
use crate::simd::{LANES, Simd};

/// Record: codes, then scales as f16.
#[derive(Debug)]
pub(crate) struct Q8_0;

const RECORD: usize = BLOCK_CODES + 2 * LANES;

impl Record for Q8_0 {
    const KIND: Kind = Kind::Bytes32;
    const CODES_IN_PLACE: bool = true;
    type Head<S: Simd> = ();

    fn cols(&self) -> usize {
        32
    }

    fn record_bytes(&self) -> usize {
        RECORD
    }

    #[inline(always)]
    unsafe fn head<S: Simd>(&self, _: S, _: *const u8) {}

    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, s: S, record: *const u8, _: (), _: usize) -> (S::V, S::V) {
        // SAFETY: sixteen f16 end the record.
        (
            unsafe { s.load_f16(record.add(BLOCK_CODES).cast()) },
            s.splat(0.0),
        )
    }

    #[inline(always)]
    unsafe fn dot<S: Simd, const M: usize>(
        &self,
        s: S,
        record: *const u8,
        _: usize,
        x: *const i8,
        x_sums: *const i32,
    ) -> [S::I; M] {
        // SAFETY: codes start the record, the rest is the caller's.
        unsafe { s.dot_i8::<M, 8>(record.cast(), x, x_sums) }
    }

    fn spread(&self, _: &[u8], _: usize, _: &mut [u8]) {}
}

impl GgmlBlocks for Q8_0 {
    fn block_bytes(&self) -> usize {
        34
    }

    fn pack(&self, block: &[u8], lane: usize, record: &mut [u8]) {
        let (codes, scales) = record.split_at_mut(BLOCK_CODES);
        for (group, bytes) in block[2..34].chunks_exact(4).enumerate() {
            codes[code_place(group * 4, lane)..][..4].copy_from_slice(bytes);
        }
        put_u16(scales, lane, read_f16(block).to_bits());
    }
}
