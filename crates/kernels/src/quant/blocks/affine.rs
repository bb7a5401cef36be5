//! MLX's affine quantisation: groups of nibbles with a scale and a bias.

use super::{BLOCK_NIBBLES, Kind, Record, pack_nibbles, spread_nibbles};
use crate::element::Element;
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

    /// Packs one row into a lane of a panel's records.
    pub(crate) fn pack_row(
        &self,
        from: &AffineRows<'_>,
        (row, lane): (usize, usize),
        cols: usize,
        records: &mut [u8],
    ) {
        let (n_groups, size) = (cols / self.group, size_of::<E>());
        let codes = &from.codes[row * cols / 2..][..cols / 2];
        for (i, record) in records.chunks_exact_mut(Record::record_bytes(self)).enumerate() {
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

impl<E: Element> Record for Affine<E> {
    const KIND: Kind = Kind::Nibbles;
    /// The group's scale and bias.
    type Head<S: Simd> = (S::V, S::V);

    fn cols(&self) -> usize {
        self.group
    }

    fn record_bytes(&self) -> usize {
        self.nibbles() + 2 * size_of::<E>() * LANES
    }

    #[inline(always)]
    unsafe fn head<S: Simd>(&self, s: S, record: *const u8) -> (S::V, S::V) {
        // SAFETY: two times sixteen numbers end the record, which starts at a multiple of their size.
        unsafe {
            let numbers = record.add(self.nibbles()).cast::<E>();
            (E::load(s, numbers), E::load(s, numbers.add(LANES)))
        }
    }

    #[inline(always)]
    unsafe fn scale<S: Simd>(
        &self,
        _: S,
        _: *const u8,
        scale_and_bias: (S::V, S::V),
        _: usize,
    ) -> (S::V, S::V) {
        scale_and_bias
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
