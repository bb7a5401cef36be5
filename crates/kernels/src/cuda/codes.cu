// Makes matrices of codes as gemv_quant.cu reads them, from ggml's blocks or at random.
#include "codes.cuh"

// From ggml's blocks, [row][n_in / columns of a block], to codes and scales of rows from `row0` on of a matrix of
// `n_out` rows. A thread does 32 inputs.
extern "C" __global__ void arrange(const uint8_t *blocks, uint8_t *codes, uint8_t *scales, int n_rows, int n_in, int row0,
                                   int n_out, int format) {
  begin();
  int n_blocks = n_in / 32;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (size_t)n_rows * n_blocks;
       i += (size_t)gridDim.x * blockDim.x) {
    size_t row = i / n_blocks;
    int block = i % n_blocks;
    size_t place = (size_t)(block / 4) * n_out + row0 + row;  // of the chunk's scales
    if (format == Q8_0) {
      const uint8_t *from = blocks + i * 34;
      uint8_t *to = codes + ((row0 + row) * n_blocks + block) * 32;
      for (int k = 0; k < 32; k++) to[byte_of(k)] = from[2 + k];
      ((__half *)scales)[place * 4 + block % 4] = half_at(from);
      continue;
    }
    uint8_t q[32];  // four bits each, of sixes six
    if (format == Q4_0) {
      const uint8_t *from = blocks + i * 18;
      float scale = __half2float(half_at(from));
      for (int k = 0; k < 32; k++) q[k] = from[2 + k % 16] >> k / 16 * 4 & 15;
      ((__half2 *)scales)[place * 4 + block % 4] = __floats2half2_rn(scale, 8.f * scale);
    } else if (format == Q4_K) {
      const uint8_t *from = blocks + (row * (n_in / 256) + block / 8) * 144, *s = from + 4;
      int j = block % 8;
      int low = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
      int high = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
      for (int k = 0; k < 32; k++) q[k] = from[16 + j / 2 * 32 + k] >> j % 2 * 4 & 15;
      ((__half2 *)scales)[place * 4 + block % 4] =
          __floats2half2_rn(__half2float(half_at(from)) * low, __half2float(half_at(from + 2)) * high);
    } else {  // Q6_K: halves of 128 inputs, of which 64 bytes have the lower bits and 32 the upper ones
      const uint8_t *from = blocks + (row * (n_in / 256) + block / 8) * 210;
      int half = block % 8 / 4, first = block % 4 * 32;
      uint8_t *beside = scales + place * SIXES_BESIDE;
      uint8_t upper[8] = {};  // of the word of each of four lanes, this block's two bytes
      for (int k = 0; k < 32; k++) {
        int c = first + k;
        q[k] = from[half * 64 + c % 64] >> c / 64 * 4 & 15;
        int top = from[128 + half * 32 + c % 32] >> c / 32 * 2 & 3;
        upper[k % 8 / 2 * 2 + k % 2] |= top << upper_bit_of(k);
      }
      for (int k = 0; k < 8; k++) beside[upper_byte_of(block, k)] = upper[k];
      float d = __half2float(half_at(from + 208));
      for (int k = 0; k < 2; k++)
        ((__half *)(beside + SIXES_SCALES))[block % 4 * 2 + k] =
            __float2half_rn(d * (int8_t)from[192 + block % 8 * 2 + k]);
    }
    uint8_t packed[16] = {};
    for (int k = 0; k < 32; k++) packed[nibble_of(k) / 2] |= q[k] << nibble_of(k) % 2 * 4;
    uint8_t *to = codes + ((row0 + row) * n_blocks + block) * 16;
    for (int k = 0; k < 16; k++) to[k] = packed[k];
  }
}

// Words at random in `codes`, and in `scales` of every `period` words the first `n_random`; all others are `scale`, so
// that numbers have about the deviation given.
extern "C" __global__ void random_codes(uint32_t *codes, size_t n, uint32_t *scales, size_t n_scales, int period,
                                        int n_random, uint32_t scale, uint64_t seed) {
  begin();
  size_t stride = (size_t)gridDim.x * blockDim.x, first = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  auto drawn = [&](size_t i) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    return (uint32_t)((z ^ (z >> 27)) * 0x94d049bb133111ebull >> 32);
  };
  for (size_t i = first; i < n; i += stride) codes[i] = drawn(i);
  for (size_t i = first; i < n_scales; i += stride) scales[i] = (int)(i % period) < n_random ? drawn(n + i) : scale;
}
