//! AVX-512, with and without the instruction for pairs of bf16: a vector is one register.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Simd;

/// Proof that the CPU has what [`Level::Avx512`](crate::Level::Avx512) names, or
/// [`Level::Avx512Bf16`](crate::Level::Avx512Bf16) if so.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL, DQ and VNNI, AVX2, FMA and F16C; AVX-512 BF16 too if so.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    type I = __m512i;
    type W = __m512i;

    const ACCUMULATORS: usize = 12;
    const INT_ACCUMULATORS: usize = 8;
    const DOTS_BF16: bool = BF16;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn zero_below(self, x: Self::V, limit: f32, v: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(!below, v)
        }
    }

    #[inline(always)]
    fn exp2_whole(self, n: Self::V) -> Self::V {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    fn reduce_add(self, v: Self::V) -> f32 {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn reduce_add_each<const N: usize>(self, v: [Self::V; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        for (v, sums) in v.chunks(4).zip(sums.chunks_mut(4)) {
            match *v {
                // SAFETY: the token proves that the CPU has the instructions.
                [a, b, c, d] => sums.copy_from_slice(&unsafe { reduce_add_four(a, b, c, d) }),
                _ => sums
                    .iter_mut()
                    .zip(v)
                    .for_each(|(sum, v)| *sum = self.reduce_add(*v)),
            }
        }
        sums
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> Self::V {
        // SAFETY: the token proves the instruction, the caller the sixteen values.
        unsafe { _mm512_loadu_ps(ptr) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V {
        // SAFETY: the token proves the instructions, the caller the sixteen values.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(ptr.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(self, ptr: *const bf16) -> [Self::V; 2] {
        // SAFETY: the token proves the instructions, the caller the sixteen pairs.
        unsafe {
            let pairs = _mm512_loadu_si512(ptr.cast());
            let upper = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [upper, _mm512_slli_epi32::<16>(pairs)].map(|v| _mm512_castsi512_ps(v))
        }
    }

    #[inline(always)]
    unsafe fn dot_bf16(self, ptr: *const bf16, x: u32, sum: Self::V) -> Self::V {
        if BF16 {
            // SAFETY: the token proves the instructions, the caller the sixteen pairs. Any bits are a pair of bf16.
            unsafe {
                let pairs: __m512bh = std::mem::transmute(_mm512_loadu_si512(ptr.cast()));
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x as i32));
                _mm512_dpbf16_ps(sum, pairs, x)
            }
        } else {
            // SAFETY: passed on to the caller.
            let [second, first] = unsafe { self.load_bf16_pairs(ptr) };
            let sum = self.fma(second, self.splat(f32::from_bits(x & 0xffff_0000)), sum);
            self.fma(first, self.splat(f32::from_bits(x << 16)), sum)
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const f16) -> Self::V {
        // SAFETY: the token proves the instructions, the caller the sixteen values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn load_u8(self, ptr: *const u8) -> Self::V {
        // SAFETY: the token proves the instructions, the caller the sixteen bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(ptr.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> Self::V {
        // SAFETY: the token proves the instructions, the caller the sixteen bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(ptr.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, v: Self::V) {
        // SAFETY: the token proves the instruction, the caller room for sixteen values.
        unsafe { _mm512_storeu_ps(ptr, v) }
    }

    #[inline(always)]
    fn to_float(self, v: Self::I) -> Self::V {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    fn no_ints(self) -> Self::I {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn reduce_ints<const N: usize>(self, v: [Self::I; N]) -> [i32; N] {
        let mut sums = [0; N];
        for (v, sums) in v.chunks(4).zip(sums.chunks_mut(4)) {
            match *v {
                // SAFETY: the token proves that the CPU has the instructions.
                [a, b, c, d] => sums.copy_from_slice(&unsafe { reduce_four_ints(a, b, c, d) }),
                _ => {
                    for (sum, v) in sums.iter_mut().zip(v) {
                        // SAFETY: as above.
                        *sum = unsafe { _mm512_reduce_add_epi32(*v) };
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn load_i16(self, ptr: *const i16) -> Self::W {
        // SAFETY: the token proves the instruction, the caller the thirty-two values.
        unsafe { _mm512_loadu_si512(ptr.cast()) }
    }

    #[inline(always)]
    unsafe fn widen_i8(self, ptr: *const i8) -> Self::W {
        // SAFETY: the token proves the instructions, the caller the thirty-two bytes.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(ptr.cast())) }
    }

    #[inline(always)]
    unsafe fn splat_pair(self, ptr: *const i16) -> Self::W {
        // SAFETY: the token proves the instruction, the caller the two values.
        unsafe { _mm512_set1_epi32(ptr.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, ptr: *mut i16, v: Self::V) {
        // SAFETY: the token proves the instructions, the caller room for sixteen values.
        unsafe { _mm256_storeu_si256(ptr.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v))) }
    }

    #[inline(always)]
    fn add_pairs(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }

    #[inline(always)]
    fn zip(self, a: Self::W, b: Self::W) -> [Self::W; 2] {
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe { [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)] }
    }

    #[inline(always)]
    fn in_order(self, [a, b]: [Self::I; 2]) -> [Self::I; 2] {
        // Of eight fours of lanes the first vector has those of even number, the second the others.
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe {
            let lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            [
                _mm512_permutex2var_epi64(a, lower, b),
                _mm512_permutex2var_epi64(a, upper, b),
            ]
        }
    }

    #[inline(always)]
    unsafe fn dot_u4<const M: usize, const GROUPS: usize>(
        self,
        codes: *const u8,
        x: *const i8,
        start: [i32; M],
    ) -> [Self::I; M] {
        // SAFETY: passed on to the caller.
        let [sums] = unsafe { self.dots_u4::<M, 1, GROUPS>([codes], x, start) };
        sums
    }

    #[inline(always)]
    unsafe fn dot_i8<const M: usize, const GROUPS: usize>(
        self,
        codes: *const i8,
        x: *const i8,
        x_sums: *const i32,
    ) -> [Self::I; M] {
        // SAFETY: passed on to the caller.
        let [sums] = unsafe { self.dots_i8::<M, 1, GROUPS>([codes], x, x_sums) };
        sums
    }

    #[inline(always)]
    unsafe fn dots_u4<const M: usize, const P: usize, const GROUPS: usize>(
        self,
        codes: [*const u8; P],
        x: *const i8,
        start: [i32; M],
    ) -> [[Self::I; M]; P] {
        // SAFETY: the token proves the instructions, the caller the bytes.
        unsafe {
            let mut sums = [start_with(start); P];
            for g in 0..GROUPS {
                let mut w = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    w[p] = _mm512_loadu_si512(codes[p].add(64 * g).cast());
                }
                add_products::<M, P>(&mut sums, w, x, g);
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn dots_i8<const M: usize, const P: usize, const GROUPS: usize>(
        self,
        codes: [*const i8; P],
        x: *const i8,
        x_sums: *const i32,
    ) -> [[Self::I; M]; P] {
        // The instruction wants unsigned codes: 128 is added to each, and 128 times the sum of `x` taken off.
        // SAFETY: the token proves the instructions, the caller the bytes.
        unsafe {
            let offset = _mm512_set1_epi8(-128);
            let mut start = [0; M];
            for i in 0..M {
                start[i] = -128 * *x_sums.add(i);
            }
            let mut sums = [start_with(start); P];
            for g in 0..GROUPS {
                let mut w = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    w[p] = _mm512_xor_si512(_mm512_loadu_si512(codes[p].add(64 * g).cast()), offset);
                }
                add_products::<M, P>(&mut sums, w, x, g);
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn dot_nibbles<const M: usize>(
        self,
        nibbles: *const u8,
        x: *const i8,
        start: [i32; M],
    ) -> [Self::I; M] {
        // SAFETY: the token proves the instructions, the caller the bytes.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut sums = start_with(start);
            for g in 0..4 {
                let both = _mm512_loadu_si512(nibbles.add(64 * g).cast());
                let lower = _mm512_and_si512(both, mask);
                let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
                for i in 0..M {
                    sums[i] = _mm512_dpbusd_epi32(sums[i], lower, four::<M>(x, g, i));
                    sums[i] = _mm512_dpbusd_epi32(sums[i], upper, four::<M>(x, g + 4, i));
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn dot_six<const M: usize, const UPPER: bool>(
        self,
        nibbles: *const u8,
        twos: *const u8,
        x: *const i8,
        x_sums: *const i32,
    ) -> [Self::I; M] {
        // SAFETY: the token proves the instructions, the caller the bytes.
        unsafe {
            let (low, high) = (_mm512_set1_epi8(15), _mm512_set1_epi8(48));
            let twos = _mm512_loadu_si512(twos.cast());
            // Each group's two bits, where they belong in a code: shifts go by 16 bits, the mask keeps what is right.
            let twos = [
                _mm512_slli_epi16::<4>(twos),
                _mm512_slli_epi16::<2>(twos),
                twos,
                _mm512_srli_epi16::<2>(twos),
            ];
            let mut start = [0; M];
            for i in 0..M {
                start[i] = -32 * *x_sums.add(i);
            }
            let mut sums = start_with(start);
            for g in 0..4 {
                let both = _mm512_loadu_si512(nibbles.add(64 * g).cast());
                let lower = if UPPER { _mm512_srli_epi16::<4>(both) } else { both };
                let lower = _mm512_and_si512(lower, low);
                let code = _mm512_or_si512(lower, _mm512_and_si512(twos[g], high));
                for i in 0..M {
                    sums[i] = _mm512_dpbusd_epi32(sums[i], code, four::<M>(x, g, i));
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

/// Each row's sums before anything is added.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn start_with<const M: usize>(start: [i32; M]) -> [__m512i; M] {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut sums = [_mm512_setzero_si512(); M];
        for i in 0..M {
            sums[i] = _mm512_set1_epi32(start[i]);
        }
        sums
    }
}

/// Adds the products of `P` panels' codes of a group with `M` rows of `x`, each read once.
///
/// # Safety
/// The CPU has AVX-512 F and VNNI, and `x` is valid for reading `[g + 1, M, 4]` bytes.
#[inline(always)]
unsafe fn add_products<const M: usize, const P: usize>(
    sums: &mut [[__m512i; M]; P],
    w: [__m512i; P],
    x: *const i8,
    g: usize,
) {
    for i in 0..M {
        // SAFETY: passed on to the caller.
        unsafe {
            let x = four::<M>(x, g, i);
            for p in 0..P {
                sums[p][i] = _mm512_dpbusd_epi32(sums[p][i], w[p], x);
            }
        }
    }
}

/// The sums of four vectors' lanes, halves added to each other as one vector's are.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn reduce_add_four(a: __m512, b: __m512, c: __m512, d: __m512) -> [f32; 4] {
    // SAFETY: passed on to the caller.
    unsafe {
        // Lower halves of two, then upper ones: 0x44 and 0xee name quarters 0, 1 and 2, 3 of each.
        let halves = |a, b| {
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(a, b),
                _mm512_shuffle_f32x4::<0xee>(a, b),
            )
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        // Quarters 0, 2 and 1, 3 of each: a vector a quarter.
        let quarters = _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(ab, cd),
            _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        );
        let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0x0e>(quarters));
        let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0x01>(pairs));
        let first_of_quarters = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        let sums = _mm512_permutexvar_ps(first_of_quarters, sums);
        std::mem::transmute::<__m128, [f32; 4]>(_mm512_castps512_ps128(sums))
    }
}

/// The same of whole numbers.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn reduce_four_ints(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [i32; 4] {
    // SAFETY: passed on to the caller.
    unsafe {
        let halves = |a, b| {
            _mm512_add_epi32(
                _mm512_shuffle_i32x4::<0x44>(a, b),
                _mm512_shuffle_i32x4::<0xee>(a, b),
            )
        };
        let (ab, cd) = (halves(a, b), halves(c, d));
        let quarters = _mm512_add_epi32(
            _mm512_shuffle_i32x4::<0x88>(ab, cd),
            _mm512_shuffle_i32x4::<0xdd>(ab, cd),
        );
        let pairs = _mm512_add_epi32(quarters, _mm512_shuffle_epi32::<0x0e>(quarters));
        let sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0x01>(pairs));
        let first_of_quarters = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        let sums = _mm512_permutexvar_epi32(first_of_quarters, sums);
        std::mem::transmute::<__m128i, [i32; 4]>(_mm512_castsi512_si128(sums))
    }
}

/// Four columns of row `i` of `x`, in each lane.
///
/// # Safety
/// The CPU has AVX-512 F, and `x` is valid for reading `[g + 1, M, 4]` bytes, of which `i` is a row.
#[inline(always)]
unsafe fn four<const M: usize>(x: *const i8, g: usize, i: usize) -> __m512i {
    // SAFETY: passed on to the caller.
    unsafe { _mm512_set1_epi32(x.add(4 * (g * M + i)).cast::<i32>().read_unaligned()) }
}
