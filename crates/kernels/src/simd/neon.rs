//! AArch64 Advanced SIMD: a vector is four registers, lanes 0–3, 4–7, 8–11 and 12–15.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::Simd;

/// Proof that the CPU has Advanced SIMD, as all of AArch64 has.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The CPU has Advanced SIMD.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Applies an expression on one register to each of the four.
macro_rules! quarters {
    (|$i:ident| $e:expr) => {{
        // SAFETY: the token proves that the CPU has the instructions; pointers are the caller's word.
        #[allow(unused_unsafe, reason = "arithmetic on registers is safe, loads are not")]
        let all = unsafe {
            [
                {
                    let $i: usize = 0;
                    $e
                },
                {
                    let $i: usize = 1;
                    $e
                },
                {
                    let $i: usize = 2;
                    $e
                },
                {
                    let $i: usize = 3;
                    $e
                },
            ]
        };
        all
    }};
}

impl Simd for Neon {
    type V = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type W = [int16x8_t; 4];

    // Twenty-four of thirty-two registers.
    const ACCUMULATORS: usize = 6;
    const INT_ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        quarters!(|_i| vdupq_n_f32(x))
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        quarters!(|i| vaddq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        quarters!(|i| vsubq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        quarters!(|i| vmulq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        quarters!(|i| vdivq_f32(a[i], b[i]))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        quarters!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        quarters!(|i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        quarters!(|i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]))
    }

    #[inline(always)]
    fn zero_below(self, x: Self::V, limit: f32, v: Self::V) -> Self::V {
        quarters!(|i| vbslq_f32(vcltq_f32(x[i], vdupq_n_f32(limit)), vdupq_n_f32(0.0), v[i]))
    }

    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        quarters!(|i| {
            let exponent = vaddq_s32(vcvtq_s32_f32(n[i]), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        })
    }

    #[inline(always)]
    fn reduce_add(self, v: Self::V) -> f32 {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        let lower = self.max(v, [v[2], v[3], v[2], v[3]]);
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe { vmaxvq_f32(vmaxq_f32(lower[0], lower[1])) }
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> Self::V {
        quarters!(|i| vld1q_f32(ptr.add(4 * i)))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V {
        quarters!(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(ptr.add(4 * i).cast()))))
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(self, ptr: *const bf16) -> [Self::V; 2] {
        let upper = quarters!(|i| {
            let pairs = vld1q_u32(ptr.add(8 * i).cast());
            vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000)))
        });
        let lower = quarters!(|i| {
            let pairs = vld1q_u32(ptr.add(8 * i).cast());
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs))
        });
        [upper, lower]
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> Self::V {
        // Half floats have no stable intrinsics: the bits are moved into place and scaled by 2^112, which is exact
        // for normal and subnormal numbers; infinities and NaNs are put back.
        quarters!(|i| {
            let wide = vmovl_u16(vld1_u16(ptr.add(4 * i).cast()));
            let sign = vshlq_n_u32::<16>(vandq_u32(wide, vdupq_n_u32(0x8000)));
            let magnitude = vandq_u32(wide, vdupq_n_u32(0x7fff));
            let moved = vreinterpretq_f32_u32(vshlq_n_u32::<13>(magnitude));
            let scaled = vreinterpretq_u32_f32(vmulq_f32(moved, vdupq_n_f32(f32::from_bits(0x7780_0000))));
            let special = vorrq_u32(vreinterpretq_u32_f32(moved), vdupq_n_u32(0x7f80_0000));
            let is_special = vcgeq_u32(magnitude, vdupq_n_u32(0x7c00));
            vreinterpretq_f32_u32(vorrq_u32(sign, vbslq_u32(is_special, special, scaled)))
        })
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: Self::V) {
        // SAFETY: the token proves the instruction, the caller room for sixteen values.
        unsafe {
            vst1q_f32(ptr, v[0]);
            vst1q_f32(ptr.add(4), v[1]);
            vst1q_f32(ptr.add(8), v[2]);
            vst1q_f32(ptr.add(12), v[3]);
        }
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::V {
        quarters!(|i| vcvtq_f32_s32(v[i]))
    }

    #[inline(always)]
    fn no_ints(self) -> Self::I {
        quarters!(|_i| vdupq_n_s32(0))
    }

    #[inline(always)]
    fn reduce_ints<const N: usize>(self, v: [Self::I; N]) -> [i32; N] {
        v.map(
            #[inline(always)]
            |v| {
                // SAFETY: the token proves that the CPU has the instructions.
                unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(v[0], v[1]), vaddq_s32(v[2], v[3]))) }
            },
        )
    }

    #[inline(always)]
    unsafe fn load_i16(self, ptr: *const i16) -> Self::W {
        quarters!(|i| vld1q_s16(ptr.add(8 * i)))
    }

    #[inline(always)]
    unsafe fn widen_i8(self, ptr: *const i8) -> Self::W {
        quarters!(|i| vmovl_s8(vld1_s8(ptr.add(8 * i))))
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const i16) -> Self::W {
        quarters!(|_i| vreinterpretq_s16_s32(vdupq_n_s32(ptr.cast::<i32>().read_unaligned())))
    }

    #[inline(always)]
    unsafe fn store_i16(self, ptr: *mut i16, v: Self::V) {
        quarters!(|i| vst1_s16(ptr.add(4 * i), vmovn_s32(vcvtnq_s32_f32(v[i]))));
    }

    #[inline(always)]
    fn add_pairs(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        quarters!(|i| {
            let lower = vmull_s16(vget_low_s16(a[i]), vget_low_s16(b[i]));
            vaddq_s32(sum[i], vpaddq_s32(lower, vmull_high_s16(a[i], b[i])))
        })
    }

    #[inline(always)]
    fn zip(self, a: Self::W, b: Self::W) -> [Self::W; 2] {
        // SAFETY: the token proves that the CPU has the instructions.
        [0, 2].map(
            #[inline(always)]
            |i| unsafe {
                [
                    vzip1q_s16(a[i], b[i]),
                    vzip2q_s16(a[i], b[i]),
                    vzip1q_s16(a[i + 1], b[i + 1]),
                    vzip2q_s16(a[i + 1], b[i + 1]),
                ]
            },
        )
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
) -> [[int32x4_t; 4]; M] {
    // SAFETY: Advanced SIMD is part of every AArch64 CPU; the caller answers for the bytes.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 4]; M];
        for i in 0..M {
            sums[i] = [vdupq_n_s32(start[i]); 4];
        }
        for g in 0..GROUPS {
            for quarter in 0..4 {
                // Four rows of four columns.
                let w = vld1q_s8(codes.add(64 * g + 16 * quarter));
                for i in 0..M {
                    let x = vreinterpret_s8_s32(vdup_n_s32(
                        x.add(4 * (g * M + i)).cast::<i32>().read_unaligned(),
                    ));
                    let first = vpaddlq_s16(vmull_s8(vget_low_s8(w), x));
                    let second = vpaddlq_s16(vmull_s8(vget_high_s8(w), x));
                    sums[i][quarter] = vaddq_s32(sums[i][quarter], vpaddq_s32(first, second));
                }
            }
        }
        sums
    }
}
