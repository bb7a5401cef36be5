//! Rows of heads in the types that a cache keeps them in. A row is what one head has of one token: `head_dim` numbers.

use std::ops::Range;

use half::bf16;

use crate::buffer::Buffer;
use crate::element::Element;
use crate::simd::{LANES, WIDE};
use crate::threads::Shared;

/// Rows of one storage type.
pub(crate) trait HeadRows: Send + Sync + Sized {
    /// What writes rows, of several threads if need be.
    type Writer<'a>: RowWriter
    where
        Self: 'a;

    fn zeroed(n_rows: usize, head_dim: usize) -> Self;

    /// Numbers that arithmetic reads of a row of `head_dim`, zeros after those of the row.
    fn width(head_dim: usize) -> usize;

    fn writer(&mut self) -> Self::Writer<'_>;

    /// A row as f32.
    fn read(&self, row: usize) -> impl Iterator<Item = f32>;

    fn copy_within(&mut self, rows: Range<usize>, to: usize);

    /// Makes every number of some rows NaN.
    fn scrub(&mut self, rows: Range<usize>);
}

pub(crate) trait RowWriter: Send + Sync {
    /// Rounds `from`, a row, to the storage type.
    ///
    /// # Safety
    /// There is such a row, and nobody else reads or writes it meanwhile.
    unsafe fn write(&self, row: usize, from: &[f32]);
}

/// Numbers as they are in a type of their own.
#[derive(Debug)]
pub(crate) struct Plain<E> {
    values: Buffer<E>,
    head_dim: usize,
}

impl<E> Plain<E> {
    /// Some rows that follow each other.
    #[inline(always)]
    pub(crate) fn slice(&self, rows: Range<usize>) -> &[E] {
        &self.values[rows.start * self.head_dim..rows.end * self.head_dim]
    }
}

pub(crate) struct PlainWriter<'a, E> {
    values: Shared<E>,
    head_dim: usize,
    of: std::marker::PhantomData<&'a mut E>,
}

impl<E: Element> HeadRows for Plain<E> {
    type Writer<'a> = PlainWriter<'a, E>;

    fn zeroed(n_rows: usize, head_dim: usize) -> Self {
        Self {
            values: Buffer::zeroed_in_large_pages(n_rows * head_dim),
            head_dim,
        }
    }

    fn width(head_dim: usize) -> usize {
        head_dim.next_multiple_of(LANES)
    }

    fn writer(&mut self) -> PlainWriter<'_, E> {
        PlainWriter {
            values: Shared::new(&mut self.values),
            head_dim: self.head_dim,
            of: std::marker::PhantomData,
        }
    }

    fn read(&self, row: usize) -> impl Iterator<Item = f32> {
        self.slice(row..row + 1).iter().map(|x| x.to_f32())
    }

    fn copy_within(&mut self, rows: Range<usize>, to: usize) {
        let from = rows.start * self.head_dim..rows.end * self.head_dim;
        self.values.copy_within(from, to * self.head_dim);
    }

    fn scrub(&mut self, rows: Range<usize>) {
        self.values[rows.start * self.head_dim..rows.end * self.head_dim].fill(E::NAN);
    }
}

impl<E: Element> RowWriter for PlainWriter<'_, E> {
    #[inline(always)]
    unsafe fn write(&self, row: usize, from: &[f32]) {
        debug_assert_eq!(from.len(), self.head_dim);
        // SAFETY: the row is there and nobody else's, says the caller.
        let to = unsafe {
            std::slice::from_raw_parts_mut(self.values.ptr().add(row * self.head_dim), self.head_dim)
        };
        to.iter_mut()
            .zip(from)
            .for_each(|(to, from)| *to = E::from_f32(*from));
    }
}

/// Whole numbers from -127 to 127 and what one of them stands for, in bf16: half a step is the most that a number is
/// off, and a step is the row's largest magnitude by 127, within one part in 256.
///
/// Codes are padded with zeros to whole vectors of [`WIDE`]. A row with a NaN or an infinity is NaN throughout.
#[derive(Debug)]
pub(crate) struct Coded {
    codes: Buffer<i8>,
    steps: Buffer<bf16>,
    head_dim: usize,
    width: usize,
}

impl Coded {
    /// The codes of a row, whole vectors.
    #[inline(always)]
    pub(crate) fn codes(&self, row: usize) -> *const i8 {
        debug_assert!((row + 1) * self.width <= self.codes.len());
        self.codes.as_ptr().wrapping_add(row * self.width)
    }

    /// Where what a code of a row stands for is.
    #[inline(always)]
    pub(crate) fn step(&self, row: usize) -> *const bf16 {
        debug_assert!(row < self.steps.len());
        self.steps.as_ptr().wrapping_add(row)
    }
}

pub(crate) struct CodedWriter<'a> {
    codes: Shared<i8>,
    steps: Shared<bf16>,
    head_dim: usize,
    width: usize,
    of: std::marker::PhantomData<&'a mut Coded>,
}

impl HeadRows for Coded {
    type Writer<'a> = CodedWriter<'a>;

    fn zeroed(n_rows: usize, head_dim: usize) -> Self {
        let width = Self::width(head_dim);
        Self {
            codes: Buffer::zeroed_in_large_pages(n_rows * width),
            steps: Buffer::zeroed_in_large_pages(n_rows),
            head_dim,
            width,
        }
    }

    fn width(head_dim: usize) -> usize {
        head_dim.next_multiple_of(WIDE)
    }

    fn writer(&mut self) -> CodedWriter<'_> {
        CodedWriter {
            codes: Shared::new(&mut self.codes),
            steps: Shared::new(&mut self.steps),
            head_dim: self.head_dim,
            width: self.width,
            of: std::marker::PhantomData,
        }
    }

    fn read(&self, row: usize) -> impl Iterator<Item = f32> {
        let step = self.steps[row].to_f32();
        let codes = &self.codes[row * self.width..][..self.head_dim];
        codes.iter().map(move |&code| f32::from(code) * step)
    }

    fn copy_within(&mut self, rows: Range<usize>, to: usize) {
        let from = rows.start * self.width..rows.end * self.width;
        self.codes.copy_within(from, to * self.width);
        self.steps.copy_within(rows, to);
    }

    fn scrub(&mut self, rows: Range<usize>) {
        // Codes with it, so that they are not those of what was there.
        self.codes[rows.start * self.width..rows.end * self.width].fill(i8::MAX);
        self.steps[rows].fill(bf16::NAN);
    }
}

impl RowWriter for CodedWriter<'_> {
    #[inline(always)]
    unsafe fn write(&self, row: usize, from: &[f32]) {
        debug_assert_eq!(from.len(), self.head_dim);
        // SAFETY: the row is there and nobody else's, says the caller; what pads it stays zero.
        unsafe {
            let codes = std::slice::from_raw_parts_mut(self.codes.ptr().add(row * self.width), self.width);
            let (codes, padding) = codes.split_at_mut(self.head_dim);
            padding.fill(0);
            self.steps.ptr().add(row).write(encode(from, codes));
        }
    }
}

/// Codes of numbers, and their step.
#[inline(always)]
fn encode(from: &[f32], codes: &mut [i8]) -> bf16 {
    // Compared as bits, a NaN is larger than any number.
    let largest = from
        .iter()
        .fold(0, |largest, x| (x.to_bits() & 0x7fff_ffff).max(largest));
    let step = bf16::from_f32(f32::from_bits(largest) / 127.0);
    // Of a step so small that this is infinite, and of none, codes are zeros.
    let per_step = if largest == 0 { 0.0 } else { 1.0 / step.to_f32() };
    // Adding this leaves no bits for a fraction; the whole number is what remains in the low bits.
    const ROUND: f32 = 12_582_912.0;
    for (code, x) in codes.iter_mut().zip(from) {
        *code = (x * per_step + ROUND).to_bits() as i8;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(from: &[f32]) -> (Vec<f32>, f32) {
        let mut rows = Coded::zeroed(3, from.len());
        // SAFETY: the second of three rows.
        unsafe { rows.writer().write(1, from) };
        for other in [0, 2] {
            assert!(rows.read(other).all(|x| x == 0.0));
        }
        (rows.read(1).collect(), rows.steps[1].to_f32())
    }

    #[test]
    fn codes_are_within_half_a_step_of_their_numbers() {
        for len in [1, 8, 31, 32, 33, 100, 256] {
            for magnitude in [1e-30, 3e-5, 1.0, 1e30] {
                let from: Vec<f32> = (0..len)
                    .map(|i| (((i * 37) % 64) as f32 - 31.3) * magnitude)
                    .collect();
                let largest = from.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
                let (read, step) = written(&from);
                assert!(step <= largest / 127.0 * (1.0 + 1.0 / 256.0));
                for (x, read) in from.iter().zip(read) {
                    assert!(
                        (x - read).abs() <= 0.5001 * step,
                        "{read} for {x} in steps of {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_too_small_for_a_step_are_zeros() {
        for from in [[0.0; 5], [1e-40, -1e-40, 0.0, 1e-44, 3e-39]] {
            assert!(written(&from).0.iter().all(|x| x.abs() < 1e-36));
        }
    }

    #[test]
    fn what_is_not_finite_is_not_lost() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(written(&[1.0, bad, 2.0]).0.iter().all(|x| x.is_nan()));
        }
    }
}
