//! AVX2 with FMA and F16C: a vector is two registers, lanes 0–7 and 8–15.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Simd;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($intrinsic:ident($($v:ident),+)) => {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { [$intrinsic($($v[0]),+), $intrinsic($($v[1]),+)] }
    };
}

impl Simd for Avx2 {
    type V = [__m256; 2];
    type I = [__m256i; 2];
    type W = [__m256i; 2];

    // Twelve of sixteen registers.
    const ACCUMULATORS: usize = 6;
    // Eight, and as many for codes, their magnitudes and products.
    const INT_ACCUMULATORS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        both!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn zero_below(self, x: Self::V, limit: f32, v: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            let below = [
                _mm256_cmp_ps::<_CMP_LT_OQ>(x[0], limit),
                _mm256_cmp_ps::<_CMP_LT_OQ>(x[1], limit),
            ];
            [_mm256_andnot_ps(below[0], v[0]), _mm256_andnot_ps(below[1], v[1])]
        }
    }

    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            n.map(
                #[inline(always)]
                |n| {
                    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), bias);
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
                },
            )
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: Self::V) -> f32 {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> Self::V {
        // SAFETY: the token proves the instruction, the caller the sixteen values.
        unsafe { [_mm256_loadu_ps(ptr), _mm256_loadu_ps(ptr.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V {
        // SAFETY: the token proves the instructions, the caller the sixteen values.
        unsafe {
            [ptr, ptr.add(8)].map(
                #[inline(always)]
                |ptr| {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                },
            )
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(self, ptr: *const bf16) -> [Self::V; 2] {
        // SAFETY: the token proves the instructions, the caller the sixteen pairs.
        unsafe {
            let pairs = [ptr, ptr.add(16)].map(
                #[inline(always)]
                |ptr| _mm256_loadu_si256(ptr.cast()),
            );
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let upper = pairs.map(
                #[inline(always)]
                |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, mask)),
            );
            let lower = pairs.map(
                #[inline(always)]
                |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
            );
            [upper, lower]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> Self::V {
        // SAFETY: the token proves the instructions, the caller the sixteen values.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(ptr.add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: Self::V) {
        // SAFETY: the token proves the instruction, the caller room for sixteen values.
        unsafe {
            _mm256_storeu_ps(ptr, v[0]);
            _mm256_storeu_ps(ptr.add(8), v[1]);
        }
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::V {
        both!(_mm256_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn no_ints(self) -> Self::I {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn reduce_ints<const N: usize>(self, v: [Self::I; N]) -> [i32; N] {
        v.map(
            #[inline(always)]
            |v| {
                // SAFETY: the token proves that the CPU has the instructions.
                unsafe {
                    let v = _mm256_add_epi32(v[0], v[1]);
                    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0x0e>(v));
                    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0x01>(v)))
                }
            },
        )
    }

    #[inline(always)]
    unsafe fn load_i16(self, ptr: *const i16) -> Self::W {
        // SAFETY: the token proves the instruction, the caller the thirty-two values.
        unsafe {
            [
                _mm256_loadu_si256(ptr.cast()),
                _mm256_loadu_si256(ptr.add(16).cast()),
            ]
        }
    }

    #[inline(always)]
    unsafe fn widen_i8(self, ptr: *const i8) -> Self::W {
        // SAFETY: the token proves the instructions, the caller the thirty-two bytes.
        unsafe {
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(ptr.cast())),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(ptr.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const i16) -> Self::W {
        // SAFETY: the token proves the instruction, the caller the two values.
        unsafe { [_mm256_set1_epi32(ptr.cast::<i32>().read_unaligned()); 2] }
    }

    #[inline(always)]
    unsafe fn store_i16(self, ptr: *mut i16, v: Self::V) {
        // SAFETY: the token proves the instructions, the caller room for sixteen values.
        unsafe {
            // Packed by halves of registers: quarters 0 and 2 are those of the first eight lanes.
            let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            _mm256_storeu_si256(ptr.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }

    #[inline(always)]
    fn add_pairs(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        let products = both!(_mm256_madd_epi16(a, b));
        both!(_mm256_add_epi32(sum, products))
    }

    #[inline(always)]
    fn zip(self, a: Self::W, b: Self::W) -> [Self::W; 2] {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            [
                [
                    _mm256_unpacklo_epi16(a[0], b[0]),
                    _mm256_unpackhi_epi16(a[0], b[0]),
                ],
                [
                    _mm256_unpacklo_epi16(a[1], b[1]),
                    _mm256_unpackhi_epi16(a[1], b[1]),
                ],
            ]
        }
    }

    #[inline(always)]
    fn in_order(self, sums: [Self::I; 2]) -> [Self::I; 2] {
        // Of sixteen lanes the first register has 0–3 and 8–11, the second 4–7 and 12–15.
        // SAFETY: the token proves that the CPU has the instruction.
        sums.map(
            #[inline(always)]
            |[a, b]| unsafe {
                [
                    _mm256_permute2x128_si256::<0x20>(a, b),
                    _mm256_permute2x128_si256::<0x31>(a, b),
                ]
            },
        )
    }

    #[inline(always)]
    unsafe fn dot_u4<const M: usize, const GROUPS: usize>(
        self,
        codes: *const u8,
        x: *const i8,
        start: [i32; M],
    ) -> [Self::I; M] {
        // Products of pairs are at most 2·15·127, so eight of them fit a 16-bit lane.
        const { assert!(GROUPS <= 8) };
        // SAFETY: the token proves the instructions, the caller the bytes.
        unsafe {
            let mut pairs = [[_mm256_setzero_si256(); 2]; M];
            for g in 0..GROUPS {
                let w = [
                    _mm256_loadu_si256(codes.add(64 * g).cast()),
                    _mm256_loadu_si256(codes.add(64 * g + 32).cast()),
                ];
                for i in 0..M {
                    let x = _mm256_set1_epi32(x.add(4 * (g * M + i)).cast::<i32>().read_unaligned());
                    for half in 0..2 {
                        pairs[i][half] = _mm256_add_epi16(pairs[i][half], _mm256_maddubs_epi16(w[half], x));
                    }
                }
            }
            let ones = _mm256_set1_epi16(1);
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for i in 0..M {
                let start = _mm256_set1_epi32(start[i]);
                for half in 0..2 {
                    sums[i][half] = _mm256_add_epi32(start, _mm256_madd_epi16(pairs[i][half], ones));
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn dot_i8<const M: usize, const GROUPS: usize>(
        self,
        codes: *const i8,
        x: *const i8,
        _x_sums: *const i32,
    ) -> [Self::I; M] {
        // SAFETY: the token proves the instructions, the caller the bytes.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for g in 0..GROUPS {
                for half in 0..2 {
                    let w = _mm256_loadu_si256(codes.add(64 * g + 32 * half).cast());
                    // As an unsigned byte, the magnitude of -128 is right too.
                    let magnitude = _mm256_abs_epi8(w);
                    for i in 0..M {
                        let x = _mm256_set1_epi32(x.add(4 * (g * M + i)).cast::<i32>().read_unaligned());
                        // 128 · 127 · 2 fits a 16-bit lane, but not twice.
                        let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
                        sums[i][half] = _mm256_add_epi32(sums[i][half], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn prefetch(self, ptr: *const u8) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr.cast()) }
    }
}
