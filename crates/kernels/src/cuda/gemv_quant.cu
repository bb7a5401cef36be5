// Products of a matrix in small integers with few rows of bf16 activations, and what makes and unmakes such matrices.
//
// Formats keep ggml's numbers in another order. Codes are [row][n_in], a chunk of 128 inputs four blocks of 32 that
// share a scale; scales are [chunk][row][4]. Within a block, codes are permuted so that what ldmatrix hands to a lane
// are the weights that the tensor core wants beside the activations which ldmatrix hands to it: of inputs 0–31, lane t
// of a row's four has 2t, 2t + 1, 2t + 8, 2t + 9, 2t + 16 and so on.
//
// Codes become bf16 exactly; a block's product is summed apart and scaled in f32. So the result is that of the
// dequantised weights up to f32's rounding.
#include <cuda_fp16.h>

#include "gemv.cuh"

__device__ __forceinline__ uint32_t minus(uint32_t a, uint32_t b) {
  __nv_bfloat162 d = __hsub2(*(__nv_bfloat162 *)&a, *(__nv_bfloat162 *)&b);
  return *(uint32_t *)&d;
}

// Q8_0: signed bytes; scales f16. A lane's four bytes are inputs 2t, 2t + 8, 2t + 1, 2t + 9 of a half block.
struct Bytes {
  static constexpr int K = 128, ROW_BYTES = 128, SCALE_BYTES = 8;

  // Bytes 0 and 2 as bf16: 128 and the low seven bits, less 128 or, for negative ones, 256.
  static __device__ __forceinline__ uint32_t numbers(uint32_t w) {
    return minus(w & 0x007f007f | 0x43004300, w & 0x00800080 | 0x43004300);
  }
  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x,
                                                  uint32_t scales) {
    int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
    for (int block = 0; block < 4; block++) {
      uint32_t b[COLUMNS][4];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) ldmatrix(b[c], x + piece_at<16>(c * 8 + lane % 8, block * 4 + lane / 8));
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        uint32_t w[4];
        ldmatrix(w, codes + piece_at<8>(m * 16 + lane % 16, block * 2 + lane / 16));
        uint32_t first[4] = {numbers(w[0]), numbers(w[1]), numbers(w[0] >> 8), numbers(w[1] >> 8)};
        uint32_t second[4] = {numbers(w[2]), numbers(w[3]), numbers(w[2] >> 8), numbers(w[3] >> 8)};
        float low = scale(scales, m * 16 + g, block), high = scale(scales, m * 16 + g + 8, block);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          float part[4] = {};
          mma(part, first, b[c][0], b[c][1]);
          mma(part, second, b[c][2], b[c][3]);
#pragma unroll
          for (int i = 0; i < 4; i++) acc[m][c][i] += part[i] * (i < 2 ? low : high);
        }
      }
    }
  }
  static __device__ __forceinline__ float scale(uint32_t scales, int row, int block) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(scales + row * 8 + block * 2));
    return __half2float(__ushort_as_half(v));
  }
};

// Q4_K and Q4_0: nibbles q; scale and minimum, both f16, for scale · q - minimum. A lane's word has in nibble p input
// 8p + 2t, in nibble p + 4 the one after it.
struct Nibbles {
  static constexpr int K = 128, ROW_BYTES = 64, SCALE_BYTES = 16;

  // Nibbles 0 and 4 as bf16, 128 too large.
  static __device__ __forceinline__ uint32_t numbers(uint32_t w) { return w & 0x000f000f | 0x43004300; }

  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x,
                                                  uint32_t scales) {
    const uint32_t ones[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      uint32_t b[2][COLUMNS][4];
      float sums[2][COLUMNS][4] = {};  // of the block's activations; every row alike
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          ldmatrix(b[i][c], x + piece_at<16>(c * 8 + lane % 8, (pair * 2 + i) * 4 + lane / 8));
          mma(sums[i][c], ones, b[i][c][0], b[i][c][1]);
          mma(sums[i][c], ones, b[i][c][2], b[i][c][3]);
        }
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        uint32_t w[4];
        ldmatrix(w, codes + piece_at<4>(m * 16 + lane % 16, pair * 2 + lane / 16));
#pragma unroll
        for (int i = 0; i < 2; i++) {
          uint32_t top = w[2 * i], bottom = w[2 * i + 1];
          uint32_t first[4] = {numbers(top), numbers(bottom), numbers(top >> 4), numbers(bottom >> 4)};
          uint32_t second[4] = {numbers(top >> 8), numbers(bottom >> 8), numbers(top >> 12), numbers(bottom >> 12)};
          float2 low = scale(scales, m * 16 + g, pair * 2 + i), high = scale(scales, m * 16 + g + 8, pair * 2 + i);
          low.y += 128.f * low.x;
          high.y += 128.f * high.x;
#pragma unroll
          for (int c = 0; c < COLUMNS; c++) {
            float part[4] = {};
            mma(part, first, b[i][c][0], b[i][c][1]);
            mma(part, second, b[i][c][2], b[i][c][3]);
#pragma unroll
            for (int k = 0; k < 4; k++) {
              float2 f = k < 2 ? low : high;
              acc[m][c][k] += part[k] * f.x - sums[i][c][k] * f.y;
            }
          }
        }
      }
    }
  }
  static __device__ __forceinline__ float2 scale(uint32_t scales, int row, int block) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(scales + row * 16 + block * 4));
    return __half22float2(*(__half2 *)&v);
  }
};

// Sizes as `few.rs` knows them.
#define GEMV(NAME, FORMAT, N, TILES, WARPS, STAGES)                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_##NAME##_store_##N(Gemv p) {                         \
    gemv<FORMAT, TILES, N / 8, WARPS, STAGES, STORE>(p);                                                             \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_##NAME##_store_f32_##N(Gemv p) {                     \
    gemv<FORMAT, TILES, N / 8, WARPS, STAGES, STORE_F32>(p);                                                         \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_##NAME##_add_##N(Gemv p) {                           \
    gemv<FORMAT, TILES, N / 8, WARPS, STAGES, ADD_F32>(p);                                                           \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_##NAME##_swiglu_##N(Gemv p) {                        \
    gemv<FORMAT, TILES, N / 8, WARPS, STAGES, SWIGLU>(p);                                                            \
  }
GEMV(bytes, Bytes, 8, 3, 8, 3)
GEMV(bytes, Bytes, 16, 3, 8, 2)
GEMV(nibbles, Nibbles, 8, 3, 12, 2)
GEMV(nibbles, Nibbles, 16, 3, 8, 3)

// Where input `i` of a block is: byte of 32 for Bytes, nibble of 32 for Nibbles.
__device__ __forceinline__ int byte_of(int i) { return i / 16 * 16 + i % 8 / 2 * 4 + i / 8 % 2 + i % 2 * 2; }
__device__ __forceinline__ int nibble_of(int i) { return i % 8 / 2 * 8 + i / 8 + i % 2 * 4; }

// From ggml's blocks, [row][n_in / columns of a block], to codes and scales of rows from `row0` on of a matrix of
// `n_out` rows. A thread does 32 inputs.
enum Ggml { Q8_0 = 0, Q4_0 = 1, Q4_K = 2 };
extern "C" __global__ void arrange(const uint8_t *blocks, uint8_t *codes, __half *scales, int n_rows, int n_in, int row0,
                                   int n_out, int format) {
  begin();
  int n_blocks = n_in / 32;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (size_t)n_rows * n_blocks;
       i += (size_t)gridDim.x * blockDim.x) {
    size_t row = i / n_blocks;
    int block = i % n_blocks;
    auto half_at = [](const uint8_t *p) { return __ushort_as_half((unsigned short)(p[0] | p[1] << 8)); };
    size_t scale_at = ((size_t)(block / 4) * n_out + row0 + row) * 4 + block % 4;
    if (format == Q8_0) {
      const uint8_t *from = blocks + i * 34;
      uint8_t *to = codes + ((row0 + row) * n_blocks + block) * 32;
      for (int k = 0; k < 32; k++) to[byte_of(k)] = from[2 + k];
      scales[scale_at] = half_at(from);
      continue;
    }
    uint8_t packed[16] = {};
    const uint8_t *nibbles;
    int step;  // from the low nibble's input to the high one's
    float scale, minimum;
    bool is_high = false;
    if (format == Q4_0) {
      const uint8_t *from = blocks + i * 18;
      nibbles = from + 2, step = 16;
      scale = __half2float(half_at(from)), minimum = 8.f * scale;
    } else {
      const uint8_t *from = blocks + (row * (n_in / 256) + block / 8) * 144, *s = from + 4;
      int j = block % 8;
      int low = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
      int high = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
      scale = __half2float(half_at(from)) * low, minimum = __half2float(half_at(from + 2)) * high;
      nibbles = from + 16 + j / 2 * 32, step = 32, is_high = j % 2;
    }
    for (int k = 0; k < 32; k++) {
      int q = step == 16 ? nibbles[k % 16] >> k / 16 * 4 & 15 : nibbles[k] >> is_high * 4 & 15;
      packed[nibble_of(k) / 2] |= q << nibble_of(k) % 2 * 4;
    }
    uint8_t *to = codes + ((row0 + row) * n_blocks + block) * 16;
    for (int k = 0; k < 16; k++) to[k] = packed[k];
    ((__half2 *)scales)[scale_at] = __floats2half2_rn(scale, minimum);
  }
}

// All of a matrix as bf16, [n_out][n_in]. A thread does 8 inputs of a block.
template <bool BYTES> __device__ void dequantize(const uint8_t *codes, const __half *scales, bf16 *to, int n_out, int n_in) {
  begin();
  int n_blocks = n_in / 32;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (size_t)n_out * n_blocks * 4;
       i += (size_t)gridDim.x * blockDim.x) {
    size_t row = i / (n_blocks * 4);
    int block = i / 4 % n_blocks, part = i % 4;
    size_t scale_at = ((size_t)(block / 4) * n_out + row) * 4 + block % 4;
    float scale = BYTES ? __half2float(scales[scale_at]) : 0.f, minimum = 0.f;
    if (!BYTES) {
      float2 both = __half22float2(((const __half2 *)scales)[scale_at]);
      scale = both.x, minimum = both.y;
    }
    const uint8_t *from = codes + (row * n_blocks + block) * (BYTES ? 32 : 16);
    uint32_t eight[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      float v[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int input = part * 8 + 2 * k + j;
        v[j] = BYTES ? scale * (int8_t)from[byte_of(input)]
                     : scale * (from[nibble_of(input) / 2] >> nibble_of(input) % 2 * 4 & 15) - minimum;
      }
      eight[k] = pack(v[0], v[1]);
    }
    *(uint4 *)(to + row * n_in + block * 32 + part * 8) = make_uint4(eight[0], eight[1], eight[2], eight[3]);
  }
}
extern "C" __global__ void dequantize_bytes(const uint8_t *c, const __half *s, bf16 *to, int n_out, int n_in) {
  dequantize<true>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_nibbles(const uint8_t *c, const __half *s, bf16 *to, int n_out, int n_in) {
  dequantize<false>(c, s, to, n_out, n_in);
}

// Codes at random and one scale for all, so that numbers have about the deviation given.
extern "C" __global__ void random_codes(uint32_t *codes, size_t n, uint32_t *scales, size_t n_scales, uint32_t scale,
                                        uint64_t seed) {
  begin();
  size_t stride = (size_t)gridDim.x * blockDim.x, first = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (size_t i = first; i < n; i += stride) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    codes[i] = (uint32_t)((z ^ (z >> 27)) * 0x94d049bb133111ebull >> 32);
  }
  for (size_t i = first; i < n_scales; i += stride) scales[i] = scale;
}
