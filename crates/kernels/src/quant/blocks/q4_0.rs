//! Q4_0: 32 nibbles and their scale; code 8 stands for zero.

use super::{
    BLOCK_NIBBLES, GgmlBlocks, Kind, Record, centred, pack_nibbles, put_u16, read_f16, spread_nibbles,
};
use crate::simd::{LANES, Simd};

/// Record: nibbles, then scales as f16.
#[derive(Debug)]
pub(crate) struct Q4_0;

const RECORD: usize = BLOCK_NIBBLES + 2 * LANES;

impl Record for Q4_0 {
    const KIND: Kind = Kind::Centred;
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
        let scale = unsafe { s.load_f16(record.add(BLOCK_NIBBLES).cast()) };
        (scale, s.splat(0.0))
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
        // SAFETY: nibbles start the record, the rest is the caller's.
        unsafe { s.dot_nibbles::<M>(record, x, centred(x_sums)) }
    }

    #[inline(always)]
    fn spread(&self, record: &[u8], _: usize, to: &mut [u8]) {
        spread_nibbles(record, to);
    }
}

impl GgmlBlocks for Q4_0 {
    fn block_bytes(&self) -> usize {
        18
    }

    fn pack(&self, block: &[u8], lane: usize, record: &mut [u8]) {
        let mut nibbles = [0; 16];
        nibbles.copy_from_slice(&block[2..18]);
        let (codes, scales) = record.split_at_mut(BLOCK_NIBBLES);
        pack_nibbles(&nibbles, lane, codes);
        put_u16(scales, lane, read_f16(block).to_bits());
    }
}
