//! The level that is always there: arrays, which the compiler vectorises as far as the target allows.

use half::{bf16, f16};

use super::{LANES, Simd, WIDE};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn reduce(mut v: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            v[i] = f(v[i], v[i + width]);
        }
    }
    v[0]
}

impl Simd for Portable {
    type V = [f32; LANES];
    type I = [i32; LANES];
    type W = [i16; WIDE];

    const ACCUMULATORS: usize = 4;
    const INT_ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn zero_below(self, x: Self::V, limit: f32, v: Self::V) -> Self::V {
        zip(x, v, |x, v| if x < limit { 0.0 } else { v })
    }

    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn reduce_add(self, v: Self::V) -> f32 {
        reduce(v, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        reduce(v, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> Self::V {
        // SAFETY: the caller says that sixteen values are there; arrays need no more alignment than their items.
        unsafe { *ptr.cast() }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V {
        // SAFETY: as in `load`.
        let stored: [bf16; LANES] = unsafe { *ptr.cast() };
        stored.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> Self::V {
        // SAFETY: as in `load`.
        let stored: [f16; LANES] = unsafe { *ptr.cast() };
        stored.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: Self::V) {
        // SAFETY: the caller says that there is room for sixteen values.
        unsafe { *ptr.cast() = v }
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::V {
        v.map(|x| x as f32)
    }

    #[inline(always)]
    fn no_ints(self) -> Self::I {
        [0; LANES]
    }

    #[inline(always)]
    fn reduce_ints<const N: usize>(self, v: [Self::I; N]) -> [i32; N] {
        v.map(|v| v.iter().sum())
    }

    #[inline(always)]
    unsafe fn load_i16(self, ptr: *const i16) -> Self::W {
        // SAFETY: the caller says that thirty-two values are there; arrays need no more alignment than their items.
        unsafe { *ptr.cast() }
    }

    #[inline(always)]
    unsafe fn widen_i8(self, ptr: *const i8) -> Self::W {
        // SAFETY: as in `load_i16`.
        let stored: [i8; WIDE] = unsafe { *ptr.cast() };
        stored.map(i16::from)
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const i16) -> Self::W {
        // SAFETY: the caller says that two values are there.
        let pair: [i16; 2] = unsafe { *ptr.cast() };
        std::array::from_fn(|i| pair[i % 2])
    }

    #[inline(always)]
    unsafe fn store_i16(self, ptr: *mut i16, v: Self::V) {
        // Adding this leaves no bits for a fraction; the whole number is what remains in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // SAFETY: the caller says that there is room for sixteen values.
        unsafe { *ptr.cast() = v.map(|x| (x + ROUND).to_bits() as i16) }
    }

    #[inline(always)]
    fn add_pairs(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        std::array::from_fn(|i| sum[i] + product(2 * i) + product(2 * i + 1))
    }

    #[inline(always)]
    fn zip(self, a: Self::W, b: Self::W) -> [Self::W; 2] {
        [0, LANES].map(|first| {
            std::array::from_fn(|i| {
                if i % 2 == 0 {
                    a[first + i / 2]
                } else {
                    b[first + i / 2]
                }
            })
        })
    }

    #[inline(always)]
    fn in_order(self, sums: [Self::I; 2]) -> [Self::I; 2] {
        sums
    }

    #[inline(always)]
    unsafe fn dot_u4<const M: usize, const GROUPS: usize>(
        self,
        codes: *const u8,
        x: *const i8,
        start: [i32; M],
    ) -> [Self::I; M] {
        // SAFETY: the caller's word is that of `dots`. Codes below 16 are the same as signed bytes.
        unsafe { dots::<M, GROUPS>(codes.cast(), x, start) }
    }

    #[inline(always)]
    unsafe fn dot_i8<const M: usize, const GROUPS: usize>(
        self,
        codes: *const i8,
        x: *const i8,
        _x_sums: *const i32,
    ) -> [Self::I; M] {
        // SAFETY: the caller's word is that of `dots`.
        unsafe { dots::<M, GROUPS>(codes, x, [0; M]) }
    }

    #[inline(always)]
    fn prefetch(self, _ptr: *const u8) {}
}

/// # Safety
/// `codes` is valid for reading `[GROUPS, 16, 4]` bytes, `x` for `[GROUPS, M, 4]`.
#[inline(always)]
unsafe fn dots<const M: usize, const GROUPS: usize>(
    codes: *const i8,
    x: *const i8,
    start: [i32; M],
) -> [[i32; LANES]; M] {
    let mut sums = start.map(|start| [start; LANES]);
    for g in 0..GROUPS {
        // SAFETY: in bounds, says the caller; arrays of bytes need no alignment.
        let (codes, x) = unsafe {
            (
                &*codes.cast::<[[i8; 4]; LANES]>().add(g),
                &*x.cast::<[[i8; 4]; M]>().add(g),
            )
        };
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, codes) in sums.iter_mut().zip(codes) {
                for j in 0..4 {
                    *sum += i32::from(codes[j]) * i32::from(x[j]);
                }
            }
        }
    }
    sums
}
