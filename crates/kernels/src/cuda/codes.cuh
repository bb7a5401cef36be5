// How the codes of quantised matrices lie; gemv_quant.cu says why.
#pragma once
#include <cuda_fp16.h>

#include "common.cuh"

// Where input `i` of a block is: byte of 32 for bytes and floats, nibble of 32 for nibbles and sixes.
__device__ __forceinline__ int byte_of(int i) { return i / 16 * 16 + i % 8 / 2 * 4 + i / 8 % 2 + i % 2 * 2; }
__device__ __forceinline__ int nibble_of(int i) { return i % 8 / 2 * 8 + i / 8 + i % 2 * 4; }

// What lies beside the codes of a row's chunk, of sixes: upper bits, then scales.
constexpr int SIXES_BESIDE = 48, SIXES_SCALES = 32;
// Byte and bit of the upper bits of input `i` of a block.
__device__ __forceinline__ int upper_byte_of(int block, int i) {
  return block % 4 / 2 * 16 + i % 8 / 2 * 4 + i % 2 * 2 + block % 2;
}
__device__ __forceinline__ int upper_bit_of(int i) { return i / 8 * 2; }

__device__ __forceinline__ __half half_at(const uint8_t *p) { return __ushort_as_half((unsigned short)(p[0] | p[1] << 8)); }

// Formats by number, as quantized.rs has them.
enum Format { Q8_0 = 0, Q4_0 = 1, Q4_K = 2, Q6_K = 3, FP8 = 4 };
