// Codes of quantised matrices as numbers of sixteen bits, two at a time, exactly.
#pragma once
#include "mma.cuh"

// A code's bits in the mantissa of a number whose last bit is worth one are that number and the code. Where a nibble's
// last bit is worth one, NIBBLE_SHIFT bits higher, the number is smaller, and so is what is later subtracted.
#if defined(NUMBER_BF16)
constexpr uint32_t ONES = 0x3f803f80;
constexpr uint32_t WHOLE = 0x43004300, WHOLE_AND_32 = 0x43204320;  // 128, 160
constexpr int NIBBLE_SHIFT = 0;
constexpr uint32_t NIBBLE_BASE = WHOLE;
constexpr float NIBBLE_OFFSET = 128.f;
#else
constexpr uint32_t ONES = 0x3c003c00;
constexpr uint32_t WHOLE = 0x64006400, WHOLE_AND_32 = 0x64206420;  // 1024, 1056
constexpr int NIBBLE_SHIFT = 4;
constexpr uint32_t NIBBLE_BASE = 0x54005400;
constexpr float NIBBLE_OFFSET = 64.f;
#endif

// Bytes 0 and 2: the low seven bits, less 128 for negative ones.
__device__ __forceinline__ uint32_t of_bytes(uint32_t w) {
  return minus(w & 0x007f007f | WHOLE, w & 0x00800080 | WHOLE);
}
// Nibbles 0 and 4, NIBBLE_OFFSET too large.
__device__ __forceinline__ uint32_t of_nibbles(uint32_t w) {
  return w << NIBBLE_SHIFT & 0x000f000f << NIBBLE_SHIFT | NIBBLE_BASE;
}
// Nibbles 0 and 4 with upper bits at 4 and 20, less 32.
__device__ __forceinline__ uint32_t of_sixes(uint32_t w, uint32_t upper) {
  return minus(w & 0x000f000f | upper & 0x00300030 | WHOLE, WHOLE_AND_32);
}
