//! What one step of a product is, for each type that weights are stored in.

use half::{bf16, f16};

use crate::element::Element;
use crate::simd::{LANES, Simd};

/// A type of weights that products are made with, one step after the other. A step takes [`Weight::COLUMNS`] columns.
pub(crate) trait Weight: Element {
    /// Columns of a step, a divisor of 256.
    const COLUMNS: usize;

    /// Where a column of a step lies among those of its row.
    fn place(column: usize) -> usize {
        column
    }

    /// A weight as it is stored.
    fn stored(self) -> Self {
        self
    }

    /// Words that a row of `x` takes up in a step.
    fn words<S: Simd>() -> usize;

    /// Writes a row's columns of a step, of which the last may lack some: those are zeros.
    fn pack<S: Simd>(x: &[f32], words: &mut [u32]);

    /// Adds the products of a step's columns of `P` panels, in ascending order, to their sums for `M` rows of `x`.
    ///
    /// # Safety
    /// Each of `w` is valid for reading `[16][COLUMNS]` values, `x` for `M` rows' words.
    unsafe fn step<S: Simd, const M: usize, const P: usize>(
        s: S,
        w: [*const Self; P],
        x: *const u32,
        sums: &mut [[S::V; M]; P],
    );
}

/// One column a step, multiplied in f32.
macro_rules! multiplied_in_f32 {
    ($element:ty) => {
        impl Weight for $element {
            const COLUMNS: usize = 1;

            #[inline(always)]
            fn words<S: Simd>() -> usize {
                1
            }

            #[inline(always)]
            fn pack<S: Simd>(x: &[f32], words: &mut [u32]) {
                words[0] = x[0].to_bits();
            }

            #[inline(always)]
            unsafe fn step<S: Simd, const M: usize, const P: usize>(
                s: S,
                w: [*const Self; P],
                x: *const u32,
                sums: &mut [[S::V; M]; P],
            ) {
                // SAFETY: the values are there, says the caller.
                unsafe {
                    let mut loaded = [s.splat(0.0); P];
                    for p in 0..P {
                        loaded[p] = <$element>::load(s, w[p]);
                    }
                    for i in 0..M {
                        let x = s.splat(f32::from_bits(*x.add(i)));
                        for p in 0..P {
                            sums[p][i] = s.fma(loaded[p], x, sums[p][i]);
                        }
                    }
                }
            }
        }
    };
}

multiplied_in_f32!(f32);
multiplied_in_f32!(f16);

/// Two columns a step. The second comes first in memory, because the instruction adds the upper halves' product first.
impl Weight for bf16 {
    const COLUMNS: usize = 2;

    fn place(column: usize) -> usize {
        1 - column
    }

    fn stored(self) -> Self {
        match self.to_f32().is_subnormal() {
            true => bf16::from_f32(0.0_f32.copysign(self.to_f32())),
            false => self,
        }
    }

    #[inline(always)]
    fn words<S: Simd>() -> usize {
        if S::DOTS_BF16 { 1 } else { 2 }
    }

    #[inline(always)]
    fn pack<S: Simd>(x: &[f32], words: &mut [u32]) {
        let second = x.get(1).copied().unwrap_or(0.0);
        let (first, second) = (rounded(x[0]), rounded(second));
        if S::DOTS_BF16 {
            words[0] = first | second >> 16;
        } else {
            words.copy_from_slice(&[first, second]);
        }
    }

    #[inline(always)]
    unsafe fn step<S: Simd, const M: usize, const P: usize>(
        s: S,
        w: [*const Self; P],
        x: *const u32,
        sums: &mut [[S::V; M]; P],
    ) {
        debug_assert_eq!(LANES, 16);
        // SAFETY: the values are there, says the caller.
        unsafe {
            if S::DOTS_BF16 {
                for i in 0..M {
                    let x = *x.add(i);
                    for p in 0..P {
                        sums[p][i] = s.dot_bf16(w[p], x, sums[p][i]);
                    }
                }
                return;
            }
            for p in 0..P {
                let [first, second] = s.load_bf16_pairs(w[p]);
                for i in 0..M {
                    let (x_first, x_second) = (*x.add(2 * i), *x.add(2 * i + 1));
                    sums[p][i] = s.fma(first, s.splat(f32::from_bits(x_first)), sums[p][i]);
                    sums[p][i] = s.fma(second, s.splat(f32::from_bits(x_second)), sums[p][i]);
                }
            }
        }
    }
}

/// The nearest bf16, ties to even, in the upper half of a word; zero for what is below the normal numbers.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    const EXPONENT: u32 = 0x7f80_0000;
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // A NaN stays one, whatever bits it has.
    let finite_or_nan = if x.is_nan() {
        bits & 0xffff_0000 | 0x0040_0000
    } else {
        nearest
    };
    if finite_or_nan & EXPONENT == 0 {
        finite_or_nan & 0x8000_0000
    } else {
        finite_or_nan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_bf16_are_and_tiny_ones_are_zero() {
        let special = [
            0.0,
            -0.0,
            1.0,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1.003_906_3,
        ];
        let many = (0..1 << 16).map(|i: u32| f32::from_bits(i.wrapping_mul(2_654_435_761)));
        for x in special.into_iter().chain(many) {
            let (got, expected) = (f32::from_bits(rounded(x)), bf16::from_f32(x).to_f32());
            match expected {
                nan if nan.is_nan() => assert!(got.is_nan()),
                tiny if tiny.is_subnormal() => assert_eq!(got.to_bits(), 0.0_f32.copysign(x).to_bits()),
                expected => assert_eq!(got.to_bits(), expected.to_bits(), "{x:e}"),
            }
        }
    }
}
