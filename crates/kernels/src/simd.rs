//! Vectors of sixteen f32 lanes, whatever the CPU's own width: two AVX2 registers, one AVX-512 register, four of
//! NEON, or an array. With one lane layout everywhere, a kernel written once adds in the same order everywhere.

mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use self::neon::Neon;
pub(crate) use self::portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Lanes of a vector of i16.
pub(crate) const WIDE: usize = 2 * LANES;

/// Bytes of four groups of four columns of sixteen rows.
const NIBBLES: usize = 4 * LANES * 4;

/// An instruction set. A value of it is the proof that the CPU has it, so operations on registers are safe.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen lanes of f32.
    type V: Copy;
    /// Sixteen lanes of i32.
    type I: Copy;
    /// Thirty-two lanes of i16.
    type W: Copy;

    /// How many accumulators of a register tile the registers hold, beside the operands.
    const ACCUMULATORS: usize;
    /// The same for tiles of integers: at most 4, or 8.
    const INT_ACCUMULATORS: usize;
    /// Whether there is an instruction for [`Simd::dot_bf16`].
    const DOTS_BF16: bool = false;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once (twice on [`Portable`], where fused arithmetic would be a library call a lane).
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater lane; `b` where one of them is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lesser lane; `b` where one of them is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v` where `x < limit` does not hold, else zero.
    fn zero_below(self, x: Self::V, limit: f32, v: Self::V) -> Self::V;
    /// Two to the power of each lane, whole numbers from -126 to 127.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// Sum of all lanes: halves added to each other until one lane is left.
    fn reduce_add(self, v: Self::V) -> f32;
    fn reduce_max(self, v: Self::V) -> f32;
    /// [`Simd::reduce_add`] of each.
    #[inline(always)]
    fn reduce_add_each<const N: usize>(self, v: [Self::V; N]) -> [f32; N] {
        v.map(|v| self.reduce_add(v))
    }

    /// # Safety
    /// `ptr` is valid for reading sixteen values.
    unsafe fn load(self, ptr: *const f32) -> Self::V;
    /// # Safety
    /// `ptr` is valid for reading sixteen values.
    unsafe fn load_bf16(self, ptr: *const bf16) -> Self::V;
    /// The second of each of sixteen pairs, and the first of each.
    ///
    /// # Safety
    /// `ptr` is valid for reading sixteen pairs.
    #[inline(always)]
    unsafe fn load_bf16_pairs(self, ptr: *const bf16) -> [Self::V; 2] {
        // SAFETY: the pairs are there, says the caller, and the arrays hold sixteen values.
        unsafe {
            let pairs = &*ptr.cast::<[[bf16; 2]; LANES]>();
            let [first, second] = [1, 0].map(|i| pairs.map(|pair| pair[i].to_f32()));
            [self.load(first.as_ptr()), self.load(second.as_ptr())]
        }
    }
    /// `sum` and the products of sixteen pairs of bf16 with one pair, those of the seconds first; each product is added as
    /// by [`Simd::fma`], but what is below the normal numbers is zero. `x` holds the second of its pair in the upper half.
    ///
    /// # Safety
    /// `ptr` is valid for reading sixteen pairs.
    #[inline(always)]
    unsafe fn dot_bf16(self, ptr: *const bf16, x: u32, sum: Self::V) -> Self::V {
        // SAFETY: passed on to the caller.
        let [second, first] = unsafe { self.load_bf16_pairs(ptr) };
        let sum = self.fma(second, self.splat(f32::from_bits(x & 0xffff_0000)), sum);
        self.fma(first, self.splat(f32::from_bits(x << 16)), sum)
    }
    /// # Safety
    /// `ptr` is valid for reading sixteen values.
    unsafe fn load_f16(self, ptr: *const f16) -> Self::V;
    /// # Safety
    /// `ptr` is valid for reading sixteen bytes.
    #[inline(always)]
    unsafe fn load_u8(self, ptr: *const u8) -> Self::V {
        // SAFETY: the bytes are there, says the caller, and the array holds sixteen values.
        unsafe { self.load((*ptr.cast::<[u8; LANES]>()).map(f32::from).as_ptr()) }
    }
    /// # Safety
    /// `ptr` is valid for reading sixteen bytes.
    #[inline(always)]
    unsafe fn load_i8(self, ptr: *const i8) -> Self::V {
        // SAFETY: the bytes are there, says the caller, and the array holds sixteen values.
        unsafe { self.load((*ptr.cast::<[i8; LANES]>()).map(f32::from).as_ptr()) }
    }
    /// # Safety
    /// `ptr` is valid for writing sixteen values.
    unsafe fn store(self, ptr: *mut f32, v: Self::V);

    fn to_float(self, v: Self::I) -> Self::V;
    /// Zero in each lane.
    fn no_ints(self) -> Self::I;
    /// Sum of all lanes of each; sums of some lanes and of all fit 32 bits.
    fn reduce_ints<const N: usize>(self, v: [Self::I; N]) -> [i32; N];

    /// # Safety
    /// `ptr` is valid for reading thirty-two values.
    unsafe fn load_i16(self, ptr: *const i16) -> Self::W;
    /// Bytes as lanes of i16.
    ///
    /// # Safety
    /// `ptr` is valid for reading thirty-two bytes.
    unsafe fn widen_i8(self, ptr: *const i8) -> Self::W;
    /// Two values, again and again.
    ///
    /// # Safety
    /// `ptr` is valid for reading two values.
    unsafe fn splat_pair(self, ptr: *const i16) -> Self::W;
    /// Lanes rounded to whole numbers, ties to even. What no i16 has, infinities and NaN become anything.
    ///
    /// # Safety
    /// `ptr` is valid for writing sixteen values.
    unsafe fn store_i16(self, ptr: *mut i16, v: Self::V);
    /// Lane `i` is that of `sum` and the products of lanes `2 i` and `2 i + 1`, of which none is -32768.
    fn add_pairs(self, sum: Self::I, a: Self::W, b: Self::W) -> Self::I;
    /// Lanes of `a` each beside that of `b`, in an order of the level's own.
    fn zip(self, a: Self::W, b: Self::W) -> [Self::W; 2];
    /// Sums of [`Simd::zip`]'s pairs in the order of the lanes that were zipped.
    fn in_order(self, sums: [Self::I; 2]) -> [Self::I; 2];

    /// Sixteen sums of products of bytes for each of `M` rows of `x`: lane `r` is
    /// `start[i] + Σ codes[g][r][j] · x[g][i][j]` over `GROUPS` groups `g` of four columns `j`.
    ///
    /// `codes` are 0 to 15, and `GROUPS` at most 8.
    ///
    /// # Safety
    /// `codes` is valid for reading `[GROUPS, 16, 4]` bytes, `x` for `[GROUPS, M, 4]`.
    unsafe fn dot_u4<const M: usize, const GROUPS: usize>(
        self,
        codes: *const u8,
        x: *const i8,
        start: [i32; M],
    ) -> [Self::I; M];

    /// As [`Simd::dot_u4`] from zero on, for any `codes`; `x` is not -128. `x_sums` are the sums of each row's `x`.
    ///
    /// # Safety
    /// As for [`Simd::dot_u4`], and `x_sums` is valid for reading `M` values.
    unsafe fn dot_i8<const M: usize, const GROUPS: usize>(
        self,
        codes: *const i8,
        x: *const i8,
        x_sums: *const i32,
    ) -> [Self::I; M];

    /// [`Simd::dot_u4`] for each of some panels' codes.
    ///
    /// # Safety
    /// As for [`Simd::dot_u4`], each.
    #[inline(always)]
    unsafe fn dots_u4<const M: usize, const P: usize, const GROUPS: usize>(
        self,
        codes: [*const u8; P],
        x: *const i8,
        start: [i32; M],
    ) -> [[Self::I; M]; P] {
        // SAFETY: passed on to the caller.
        std::array::from_fn(|p| unsafe { self.dot_u4::<M, GROUPS>(codes[p], x, start) })
    }

    /// [`Simd::dot_i8`] for each of some panels' codes.
    ///
    /// # Safety
    /// As for [`Simd::dot_i8`], each.
    #[inline(always)]
    unsafe fn dots_i8<const M: usize, const P: usize, const GROUPS: usize>(
        self,
        codes: [*const i8; P],
        x: *const i8,
        x_sums: *const i32,
    ) -> [[Self::I; M]; P] {
        // SAFETY: passed on to the caller.
        std::array::from_fn(|p| unsafe { self.dot_i8::<M, GROUPS>(codes[p], x, x_sums) })
    }

    /// As [`Simd::dot_u4`] of eight groups, codes two to a byte: the lower halves are those of groups 0 to 3, the upper
    /// ones those of 4 to 7.
    ///
    /// # Safety
    /// `nibbles` is valid for reading `[4, 16, 4]` bytes, `x` for `[8, M, 4]`.
    #[inline(always)]
    unsafe fn dot_nibbles<const M: usize>(
        self,
        nibbles: *const u8,
        x: *const i8,
        start: [i32; M],
    ) -> [Self::I; M] {
        let mut codes = [0; 2 * NIBBLES];
        // SAFETY: the bytes are there, says the caller.
        let nibbles = unsafe { &*nibbles.cast::<[u8; NIBBLES]>() };
        for i in 0..NIBBLES {
            codes[i] = nibbles[i] & 15;
            codes[NIBBLES + i] = nibbles[i] >> 4;
        }
        // SAFETY: the codes are here, `x` is the caller's.
        unsafe { self.dot_u4::<M, 8>(codes.as_ptr(), x, start) }
    }

    /// As [`Simd::dot_i8`] of four groups of codes from -32 to 31. 32 added to each, their lower four bits are halves of
    /// `nibbles`, the upper ones if `UPPER`, and their upper two are bits `2 g` and `2 g + 1` of `twos`, for group `g`.
    ///
    /// # Safety
    /// `nibbles` is valid for reading `[4, 16, 4]` bytes, `twos` for `[16, 4]`, `x` for `[4, M, 4]`, `x_sums` for `M`
    /// values.
    #[inline(always)]
    unsafe fn dot_six<const M: usize, const UPPER: bool>(
        self,
        nibbles: *const u8,
        twos: *const u8,
        x: *const i8,
        x_sums: *const i32,
    ) -> [Self::I; M] {
        let mut codes = [0; NIBBLES];
        // SAFETY: the bytes are there, says the caller.
        let (nibbles, twos) = unsafe {
            (
                &*nibbles.cast::<[u8; NIBBLES]>(),
                &*twos.cast::<[u8; NIBBLES / 4]>(),
            )
        };
        for group in 0..4 {
            for i in 0..NIBBLES / 4 {
                let lower = nibbles[group * NIBBLES / 4 + i] >> if UPPER { 4 } else { 0 } & 15;
                let upper = twos[i] >> (2 * group) & 3;
                codes[group * NIBBLES / 4 + i] = (lower | upper << 4) as i8 - 32;
            }
        }
        // SAFETY: the codes are here, the rest is the caller's.
        unsafe { self.dot_i8::<M, 4>(codes.as_ptr(), x, x_sums) }
    }

    /// Asks for the cache line of `ptr`, which need not be valid.
    fn prefetch(self, ptr: *const u8);

    /// The first `n` values from `ptr`, zeros in the other lanes.
    ///
    /// # Safety
    /// `ptr` is valid for reading `n` values, at most sixteen.
    #[inline(always)]
    unsafe fn load_first(self, ptr: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0; LANES];
        // SAFETY: `ptr` holds `n` values, says the caller, and `lanes` sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(ptr, lanes.as_mut_ptr(), n);
            self.load(lanes.as_ptr())
        }
    }

    /// Writes the first `n` lanes to `ptr`.
    ///
    /// # Safety
    /// `ptr` is valid for writing `n` values, at most sixteen.
    #[inline(always)]
    unsafe fn store_first(self, ptr: *mut f32, v: Self::V, n: usize) {
        let mut lanes = [0.0; LANES];
        // SAFETY: `ptr` holds `n` values, says the caller, and `lanes` sixteen.
        unsafe {
            self.store(lanes.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), ptr, n);
        }
    }

    /// e to the power of each lane, within 2 units in the last place; 0 below -87.3, at most e^88, NaN for NaN.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        const LOW: f32 = -87.3;
        // Adding this rounds to a whole number, as no bits of a fraction are left.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let clamped = self.min(self.splat(88.0), self.max(self.splat(LOW), x));
        let rounded = self.fma(clamped, self.splat(std::f32::consts::LOG2_E), self.splat(ROUND));
        let n = self.sub(rounded, self.splat(ROUND));
        let r = self.fma(n, self.splat(-LN2_HIGH), clamped);
        let r = self.fma(n, self.splat(-LN2_LOW), r);
        // e^r on [-ln2/2, ln2/2] as 1 + r + r²·p(r), coefficients of Cephes' expf.
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let e = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        self.zero_below(x, LOW, self.mul(e, self.exp2_whole(n)))
    }
}

#[cfg(test)]
mod tests;
