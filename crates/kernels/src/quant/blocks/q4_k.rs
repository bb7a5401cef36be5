//! Q4_K: eight blocks of 32 nibbles, each with a scale and a minimum of six bits, and a factor for either.

use super::{
    BLOCK_CODES, BLOCK_NIBBLES, Blocks, GgmlBlocks, Kind, Unpacked, pack_nibbles, put_u16, read_f16,
    unpack_nibbles,
};
use crate::level::{Cpu, Kernel};
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

impl Blocks for Q4K {
    fn kind(&self) -> Kind {
        Kind::Nibbles
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

struct Unpack<'a> {
    records: &'a [u8],
    to: &'a mut Unpacked,
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let codes = self.to.codes.chunks_exact_mut(BLOCKS * BLOCK_CODES);
        let scales = self.to.scales.chunks_exact_mut(BLOCKS * LANES);
        let mins = self.to.mins.chunks_exact_mut(BLOCKS * LANES);
        let to = codes.zip(scales).zip(mins);
        for (record, ((codes, scales), mins)) in self.records.chunks_exact(RECORD).zip(to) {
            // SAFETY: the record holds sixteen f16 in either place.
            let (d, dmin) = unsafe {
                (
                    s.load_f16(record.as_ptr().add(D).cast()),
                    s.load_f16(record.as_ptr().add(DMIN).cast()),
                )
            };
            for i in 0..BLOCKS {
                unpack_nibbles(&record[i * BLOCK_NIBBLES..], &mut codes[i * BLOCK_CODES..]);
                let (scales, mins) = (&mut scales[i * LANES..][..LANES], &mut mins[i * LANES..][..LANES]);
                for lane in 0..LANES {
                    scales[lane] = f32::from(record[SCALES + i * LANES + lane]);
                    mins[lane] = -f32::from(record[MINS + i * LANES + lane]);
                }
                // SAFETY: both slices hold sixteen values.
                unsafe {
                    s.store(scales.as_mut_ptr(), s.mul(d, s.load(scales.as_ptr())));
                    s.store(mins.as_mut_ptr(), s.mul(dmin, s.load(mins.as_ptr())));
                }
            }
        }
    }
}
