//! Q4_0: 32 nibbles and their scale; code 8 is zero.

use super::{
    BLOCK_CODES, BLOCK_NIBBLES, Blocks, GgmlBlocks, Kind, Unpacked, pack_nibbles, put_u16, read_f16,
    unpack_nibbles,
};
use crate::level::{Cpu, Kernel};
use crate::simd::{LANES, Simd};

/// Record: nibbles, then scales as f16.
#[derive(Debug)]
pub(crate) struct Q4_0;

const RECORD: usize = BLOCK_NIBBLES + 2 * LANES;

impl Blocks for Q4_0 {
    fn kind(&self) -> Kind {
        Kind::Nibbles
    }

    fn cols(&self) -> usize {
        32
    }

    fn record_bytes(&self) -> usize {
        RECORD
    }

    fn unpack(&self, cpu: Cpu, records: &[u8], to: &mut Unpacked) {
        cpu.run(Unpack { records, to });
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

struct Unpack<'a> {
    records: &'a [u8],
    to: &'a mut Unpacked,
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let codes = self.to.codes.chunks_exact_mut(BLOCK_CODES);
        let scales = self
            .to
            .scales
            .chunks_exact_mut(LANES)
            .zip(self.to.mins.chunks_exact_mut(LANES));
        for ((record, codes), (scales, mins)) in self.records.chunks_exact(RECORD).zip(codes).zip(scales) {
            unpack_nibbles(record, codes);
            // SAFETY: sixteen f16 end the record, and the chunks hold sixteen values.
            unsafe {
                let scale = s.load_f16(record.as_ptr().add(BLOCK_NIBBLES).cast());
                s.store(scales.as_mut_ptr(), scale);
                s.store(mins.as_mut_ptr(), s.mul(scale, s.splat(-8.0)));
            }
        }
    }
}
