//! Q8_0: 32 signed bytes and their scale. Codes are read in place.

use super::{BLOCK_CODES, Blocks, GgmlBlocks, Kind, Unpacked, code_place, put_u16, read_f16};
use crate::level::{Cpu, Kernel};
use crate::simd::{LANES, Simd};

/// Record: codes, then scales as f16.
#[derive(Debug)]
pub(crate) struct Q8_0;

const RECORD: usize = BLOCK_CODES + 2 * LANES;

impl Blocks for Q8_0 {
    fn kind(&self) -> Kind {
        Kind::Bytes32
    }

    fn cols(&self) -> usize {
        32
    }

    fn record_bytes(&self) -> usize {
        RECORD
    }

    fn codes_stride(&self) -> Option<usize> {
        Some(RECORD)
    }

    fn unpack(&self, cpu: Cpu, records: &[u8], to: &mut Unpacked) {
        cpu.run(Unpack { records, to });
    }
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

struct Unpack<'a> {
    records: &'a [u8],
    to: &'a mut Unpacked,
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (record, scales) in self
            .records
            .chunks_exact(RECORD)
            .zip(self.to.scales.chunks_exact_mut(LANES))
        {
            // SAFETY: sixteen f16 end the record, and the chunk holds sixteen values.
            unsafe {
                s.store(
                    scales.as_mut_ptr(),
                    s.load_f16(record.as_ptr().add(BLOCK_CODES).cast()),
                )
            };
        }
    }
}
