// Codes of quantised matrices as numbers of sixteen bits, two at a time.
#pragma once
#include "mma.cuh"

// Codes as numbers, CODE_UNIT times too small as soon as they are multiplied with lifted activations.
#if defined(NUMBER_BF16)
// The bits of a code below 256 are themselves a number: the code times 2^-133, no matter that it may be subnormal. With activations
// times 2^60, which may be as large as 2^67 before, products are far from the least f32.
constexpr float CODE_UNIT = 0x1p73f;
constexpr uint32_t UP_60 = 0x5d805d80, UP_56 = 0x5b805b80;
__device__ __forceinline__ uint32_t lifted(uint32_t x) { return times(x, UP_60); }
// Bytes 0 and 2 of a word, and 1 and 3.
__device__ __forceinline__ void of_bytes(uint32_t w, uint32_t &even, uint32_t &odd) {
  w ^= 0x80808080;
  even = minus(w & 0x00ff00ff, 0x00800080), odd = minus(__byte_perm(w, 0, 0x4341), 0x00800080);
}
// Nibbles 0 and 4 of a word, and 1 and 5, which are sixteen times as large: what they are multiplied with is lifted less.
__device__ __forceinline__ void of_nibbles(uint32_t w, uint32_t &even, uint32_t &odd) { even = w & 0x000f000f, odd = w & 0x00f000f0; }
constexpr uint32_t EVEN_ONES = 0x00010001, ODD_ONES = 0x00100010;  // codes of one
__device__ __forceinline__ uint32_t lifted_odd(uint32_t x) { return times(x, UP_56); }
// Nibbles 0 and 4 with upper bits at 4 and 20, less 32.
__device__ __forceinline__ uint32_t of_sixes(uint32_t w, uint32_t upper) {
  return minus(w & 0x000f000f | upper & 0x00300030, 0x00200020);
}
#else
// A code's bits in the mantissa of a number whose last bit is worth one are that number, 1024, and the code.
constexpr float CODE_UNIT = 1.f;
constexpr uint32_t WHOLE = 0x64006400, WHOLE_AND_32 = 0x64206420;
__device__ __forceinline__ uint32_t lifted(uint32_t x) { return x; }
// Bytes 0 and 2 of a word, and 1 and 3: the low seven bits, less 128 for negative ones.
__device__ __forceinline__ uint32_t of_even_bytes(uint32_t w) { return minus(w & 0x007f007f | WHOLE, w & 0x00800080 | WHOLE); }
__device__ __forceinline__ void of_bytes(uint32_t w, uint32_t &even, uint32_t &odd) {
  even = of_even_bytes(w), odd = of_even_bytes(w >> 8);
}
// Nibbles 0 and 4 of a word, and 1 and 5.
__device__ __forceinline__ void of_nibbles(uint32_t w, uint32_t &even, uint32_t &odd) {
  even = minus(w & 0x000f000f | WHOLE, WHOLE), odd = minus(w >> 4 & 0x000f000f | WHOLE, WHOLE);
}
constexpr uint32_t EVEN_ONES = 0x3c003c00, ODD_ONES = 0x3c003c00;  // codes of one
__device__ __forceinline__ uint32_t lifted_odd(uint32_t x) { return x; }
// Nibbles 0 and 4 with upper bits at 4 and 20, less 32.
__device__ __forceinline__ uint32_t of_sixes(uint32_t w, uint32_t upper) {
  return minus(w & 0x000f000f | upper & 0x00300030 | WHOLE, WHOLE_AND_32);
}
#endif

// Weights: codes times their scale, less a minimum, in one rounding (scales and minima are rounded before).
struct Scale {
  uint32_t factor, minimum;  // two equal numbers each
};
#if defined(NUMBER_BF16)
// Most of the codes' power is in the factor, up to which any scale of f16 is finite; the weights are so much too small.
constexpr uint32_t CODE_FACTOR = 0x77007700, WEIGHT = 0x34803480;  // 2^111, 2^-22
constexpr float WEIGHT_FACTOR = 0x1p-22f;
__device__ __forceinline__ uint32_t twice(float v) { return pack(v, v); }
// Of the upper or lower of two numbers of f16, for codes of which `ZERO` stands for zero.
template <int ZERO> __device__ __forceinline__ Scale scale_of(uint32_t two, int upper) {
  uint32_t scale = twice(__half2float(__ushort_as_half((unsigned short)(upper ? two >> 16 : two))));
  uint32_t factor = times(scale, CODE_FACTOR);
  return {factor, times(factor, ZERO * 0x00010001)};
}
// Of a scale and a minimum, f16.
__device__ __forceinline__ Scale scale_and_minimum(uint32_t two) {
  float2 of = __half22float2(*(__half2 *)&two);
  return {times(twice(of.x), CODE_FACTOR), times(twice(of.y), WEIGHT)};
}
__device__ __forceinline__ uint32_t weight(uint32_t codes, const Scale &s) { return times_minus(codes, s.factor, s.minimum); }
// Of bytes 0 and 2 of a word, and of 1 and 3.
__device__ __forceinline__ void weights_of_bytes(uint32_t w, const Scale &s, uint32_t &even, uint32_t &odd) {
  w ^= 0x80808080;
  even = weight(w & 0x00ff00ff, s), odd = weight(__byte_perm(w, 0, 0x4341), s);
}
// Of nibbles 0 and 4, of 1 and 5 and so on.
__device__ __forceinline__ void weights_of_nibbles(uint32_t w, const Scale &s, uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
  Scale sixteenth = {times(s.factor, 0x3d803d80), s.minimum};
  a = weight(w & 0x000f000f, s), b = weight(w & 0x00f000f0, sixteenth);
  w >>= 8;
  c = weight(w & 0x000f000f, s), d = weight(w & 0x00f000f0, sixteenth);
}
// Of nibbles 0 and 4 with upper bits at 4 and 20.
__device__ __forceinline__ uint32_t weights_of_sixes(uint32_t w, uint32_t upper, const Scale &s) {
  return weight(w & 0x000f000f | upper & 0x00300030, s);
}
#else
constexpr float WEIGHT_FACTOR = 1.f;
template <int ZERO> __device__ __forceinline__ Scale scale_of(uint32_t two, int upper) {
  return {__byte_perm(two, two, upper ? 0x3232 : 0x1010), 0};
}
__device__ __forceinline__ Scale scale_and_minimum(uint32_t two) {
  return {__byte_perm(two, two, 0x1010), __byte_perm(two, two, 0x3232)};
}
__device__ __forceinline__ void weights_of_bytes(uint32_t w, const Scale &s, uint32_t &even, uint32_t &odd) {
  of_bytes(w, even, odd);
  even = times(even, s.factor), odd = times(odd, s.factor);
}
__device__ __forceinline__ void weights_of_nibbles(uint32_t w, const Scale &s, uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d) {
  of_nibbles(w, a, b), of_nibbles(w >> 8, c, d);
  for (uint32_t *of : {&a, &b, &c, &d}) *of = times_minus(*of, s.factor, s.minimum);
}
__device__ __forceinline__ uint32_t weights_of_sixes(uint32_t w, uint32_t upper, const Scale &s) {
  return times(of_sixes(w, upper), s.factor);
}
#endif
