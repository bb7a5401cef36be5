//! MLX's affine quantisation: groups of nibbles with a scale and a bias.

use super::{BLOCK_CODES, BLOCK_NIBBLES, Blocks, Kind, Unpacked, pack_nibbles, unpack_nibbles};
use crate::element::Element;
use crate::level::{Cpu, Kernel};
use crate::quant::X_BLOCK;
use crate::simd::{LANES, Simd};

/// Record, a group's columns: nibbles, then scales, then biases.
#[derive(Debug)]
pub(crate) struct Affine<E> {
    /// Columns of a group, a multiple of 32.
    group: usize,
    element: std::marker::PhantomData<E>,
}

/// The tensors of a weight as MLX writes them, little-endian.
pub(crate) struct AffineRows<'a> {
    /// `[rows, cols / 8]` words of 32 bits: eight nibbles, the first column in the lowest.
    pub(crate) codes: &'a [u8],
    /// `[rows, cols / group]`
    pub(crate) scales: &'a [u8],
    /// `[rows, cols / group]`
    pub(crate) biases: &'a [u8],
}

impl<E: Element> Affine<E> {
    pub(crate) fn new(group: usize) -> Self {
        Self {
            group,
            element: std::marker::PhantomData,
        }
    }

    fn nibbles(&self) -> usize {
        self.group / X_BLOCK * BLOCK_NIBBLES
    }

    /// Packs one row into its lane of a panel's records.
    pub(crate) fn pack_row(&self, from: &AffineRows<'_>, row: usize, cols: usize, records: &mut [u8]) {
        let (n_groups, lane, size) = (cols / self.group, row % LANES, size_of::<E>());
        let codes = &from.codes[row * cols / 2..][..cols / 2];
        for (i, record) in records.chunks_exact_mut(self.record_bytes()).enumerate() {
            let (nibbles, numbers) = record.split_at_mut(self.nibbles());
            let codes = codes[i * self.group / 2..][..self.group / 2].chunks_exact(X_BLOCK / 2);
            for (codes, to) in codes.zip(nibbles.chunks_exact_mut(BLOCK_NIBBLES)) {
                // In little-endian order, byte `i` of a row has columns `2 i` and `2 i + 1`.
                let code = |col: usize| codes[col / 2] >> (col % 2 * 4) & 15;
                pack_nibbles(
                    &std::array::from_fn(|col| code(col) | code(col + 16) << 4),
                    lane,
                    to,
                );
            }
            let (scales, biases) = numbers.split_at_mut(size * LANES);
            for (from, to) in [(from.scales, scales), (from.biases, biases)] {
                let number = E::from_le_bytes(&from[(row * n_groups + i) * size..][..size]);
                // SAFETY: `to` holds sixteen numbers, and `lane` is below that.
                unsafe { to.as_mut_ptr().cast::<E>().add(lane).write_unaligned(number) };
            }
        }
    }
}

impl<E: Element> Blocks for Affine<E> {
    fn kind(&self) -> Kind {
        Kind::Nibbles
    }

    fn cols(&self) -> usize {
        self.group
    }

    fn record_bytes(&self) -> usize {
        self.nibbles() + 2 * size_of::<E>() * LANES
    }

    fn unpack(&self, cpu: Cpu, records: &[u8], to: &mut Unpacked) {
        cpu.run(Unpack {
            blocks: self,
            records,
            to,
        });
    }
}

struct Unpack<'a, E> {
    blocks: &'a Affine<E>,
    records: &'a [u8],
    to: &'a mut Unpacked,
}

impl<E: Element> Kernel for Unpack<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n_blocks = self.blocks.group / X_BLOCK;
        let codes = self.to.codes.chunks_exact_mut(n_blocks * BLOCK_CODES);
        let scales = self.to.scales.chunks_exact_mut(n_blocks * LANES);
        let mins = self.to.mins.chunks_exact_mut(n_blocks * LANES);
        let records = self.records.chunks_exact(self.blocks.record_bytes());
        for (record, ((codes, scales), mins)) in records.zip(codes.zip(scales).zip(mins)) {
            let (nibbles, numbers) = record.split_at(self.blocks.nibbles());
            for (from, to) in nibbles
                .chunks_exact(BLOCK_NIBBLES)
                .zip(codes.chunks_exact_mut(BLOCK_CODES))
            {
                unpack_nibbles(from, to);
            }
            // SAFETY: two times sixteen numbers end the record, which starts at a multiple of 64 bytes.
            let (scale, bias) = unsafe {
                let numbers = numbers.as_ptr().cast::<E>();
                (E::load(s, numbers), E::load(s, numbers.add(LANES)))
            };
            for (scales, mins) in scales.chunks_exact_mut(LANES).zip(mins.chunks_exact_mut(LANES)) {
                // SAFETY: both chunks hold sixteen values.
                unsafe {
                    s.store(scales.as_mut_ptr(), scale);
                    s.store(mins.as_mut_ptr(), bias);
                }
            }
        }
    }
}
