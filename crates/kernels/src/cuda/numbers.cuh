// Codes of quantised matrices as numbers of sixteen bits, two at a time.
//
// The bits of a code below 256 are themselves a number, subnormal or not: the code times the type's least number (2^-133 in bf16,
// 2^-24 in f16). So a mask makes numbers of codes, and where they are signed a subtraction.
#pragma once
#include "mma.cuh"

// Bytes 0 and 2 of a word, and 1 and 3.
__device__ __forceinline__ void unsigned_bytes(uint32_t w, uint32_t &even, uint32_t &odd) {
  w ^= 0x80808080;
  even = w & 0x00ff00ff, odd = __byte_perm(w, 0, 0x4341);
}
__device__ __forceinline__ void of_bytes(uint32_t w, uint32_t &even, uint32_t &odd) {
  unsigned_bytes(w, even, odd);
  even = minus(even, 0x00800080), odd = minus(odd, 0x00800080);
}
// Nibbles 0 and 4 of a word with upper bits at 4 and 20, less 32.
__device__ __forceinline__ uint32_t unsigned_sixes(uint32_t w, uint32_t upper) { return w & 0x000f000f | upper & 0x00300030; }
__device__ __forceinline__ uint32_t of_sixes(uint32_t w, uint32_t upper) { return minus(unsigned_sixes(w, upper), 0x00200020); }

// Numbers for mma(): with activations that were lifted, sums are CODE_UNIT times too small. Those of nibbles 1 and 5 are multiplied
// with activations lifted as odd ones; EVEN_ONES and ODD_ONES are codes of one.
#if defined(NUMBER_BF16)
// Products are to be far from the least f32; activations may be as large as 2^67.
constexpr float CODE_UNIT = 0x1p73f;
__device__ __forceinline__ uint32_t lifted(uint32_t x) { return times(x, 0x5d805d80); }      // 2^60
__device__ __forceinline__ uint32_t lifted_odd(uint32_t x) { return times(x, 0x5b805b80); }  // 2^56
// Nibbles 0 and 4 of a word, and 1 and 5, sixteen times as large.
__device__ __forceinline__ void of_nibbles(uint32_t w, uint32_t &even, uint32_t &odd) { even = w & 0x000f000f, odd = w & 0x00f000f0; }
constexpr uint32_t EVEN_ONES = 0x00010001, ODD_ONES = 0x00100010;
#else
constexpr float CODE_UNIT = 0x1p24f;
__device__ __forceinline__ uint32_t lifted(uint32_t x) { return x; }
__device__ __forceinline__ uint32_t lifted_odd(uint32_t x) { return x; }
__device__ __forceinline__ void of_nibbles(uint32_t w, uint32_t &even, uint32_t &odd) {
  even = w & 0x000f000f, odd = w >> 4 & 0x000f000f;
}
constexpr uint32_t EVEN_ONES = 0x00010001, ODD_ONES = 0x00010001;
#endif

// Weights, WEIGHT_FACTOR times too small: codes times their scale, less a minimum, in one rounding (scales and minima are rounded
// before).
struct Scale {
  uint32_t factor, minimum;  // two equal numbers each
};
#if defined(NUMBER_BF16)
// Most of the codes' power is in the factor, up to which any scale of f16 is finite.
constexpr float WEIGHT_FACTOR = 0x1p-22f;
__device__ __forceinline__ uint32_t twice(float v) { return pack(v, v); }
// Of the upper or lower of two numbers of f16, for codes of which `ZERO` stands for zero.
template <int ZERO> __device__ __forceinline__ Scale scale_of(uint32_t two, int upper) {
  uint32_t scale = twice(__half2float(__ushort_as_half((unsigned short)(upper ? two >> 16 : two))));
  uint32_t factor = times(scale, 0x77007700);          // 2^111
  return {factor, times(factor, ZERO * 0x00010001)};  // 2^-133
}
// Of a scale and a minimum, f16.
__device__ __forceinline__ Scale scale_and_minimum(uint32_t two) {
  float2 of = __half22float2(*(__half2 *)&two);
  return {times(twice(of.x), 0x77007700), times(twice(of.y), 0x34803480)};  // 2^111, 2^-22
}
__device__ __forceinline__ uint32_t weight(uint32_t codes, const Scale &s) { return times_minus(codes, s.factor, s.minimum); }
#else
constexpr float WEIGHT_FACTOR = 1.f;
__device__ __forceinline__ uint32_t low_twice(uint32_t two) { return __byte_perm(two, two, 0x1010); }
__device__ __forceinline__ uint32_t high_twice(uint32_t two) { return __byte_perm(two, two, 0x3232); }
template <int ZERO> __device__ __forceinline__ Scale scale_of(uint32_t two, int upper) {
  static_assert(ZERO == 128 || ZERO == 32);
  uint32_t scale = upper ? high_twice(two) : low_twice(two);
  return {times(scale, 0x60006000), times(scale, ZERO == 128 ? 0x58005800 : 0x50005000)};  // 2^9
}
__device__ __forceinline__ Scale scale_and_minimum(uint32_t two) {
  return {times(low_twice(two), 0x60006000), high_twice(two)};
}
// Scales are finite times 2^9 (up to 127), not times 2^24.
__device__ __forceinline__ uint32_t weight(uint32_t codes, const Scale &s) {
  return times_minus(times(codes, 0x78007800), s.factor, s.minimum);  // 2^15
}
#endif
// Of bytes 0 and 2 of a word, and of 1 and 3.
__device__ __forceinline__ void weights_of_bytes(uint32_t w, const Scale &s, uint32_t &even, uint32_t &odd) {
  unsigned_bytes(w, even, odd);
  even = weight(even, s), odd = weight(odd, s);
}
// Of nibbles 0 and 4, of 1 and 5 and so on.
__device__ __forceinline__ void weights_of_nibbles(uint32_t w, const Scale &s, uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
#if defined(NUMBER_BF16)
  const uint32_t a_sixteenth = 0x3d803d80;
#else
  const uint32_t a_sixteenth = 0x2c002c00;
#endif
  Scale odd = {times(s.factor, a_sixteenth), s.minimum};
  a = weight(w & 0x000f000f, s), b = weight(w & 0x00f000f0, odd);
  w >>= 8;
  c = weight(w & 0x000f000f, s), d = weight(w & 0x00f000f0, odd);
}
// Of nibbles 0 and 4 with upper bits at 4 and 20.
__device__ __forceinline__ uint32_t weights_of_sixes(uint32_t w, uint32_t upper, const Scale &s) {
  return weight(unsigned_sixes(w, upper), s);
}
