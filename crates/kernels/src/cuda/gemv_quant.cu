// Products of a quantised matrix with few rows of activations, bf16 or f16; codes.cu makes such matrices, quantized.cu
// unmakes them.
//
// Formats keep ggml's numbers in another order. Codes are [row][n_in], a chunk of 128 inputs four blocks of 32 that
// share a scale; scales are [chunk][row][4]. Within a block, codes are permuted so that what ldmatrix hands to a lane
// are the weights that the tensor core wants beside the activations which ldmatrix hands to it: of inputs 0–31, lane t
// of a row's four has 2t, 2t + 1, 2t + 8, 2t + 9, 2t + 16 and so on.
//
// Codes become numbers of the activations' type exactly, but for a power of two; what shares a scale is summed apart and scaled in
// f32. So the result is that of the dequantised weights up to f32's rounding.
#include "gemv.cuh"
#include "numbers.cuh"

// Q8_0: signed bytes; scales f16. A lane's four bytes are inputs 2t, 2t + 8, 2t + 1, 2t + 9 of a half block.
struct Bytes {
  static constexpr int K = 128, ROW_BYTES = 128, SCALE_BYTES = 8;
  static constexpr float ROW_UNIT = 0.f, UNIT = CODE_UNIT;

  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x,
                                                  uint32_t scales) {
    int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll
    for (int block = 0; block < 4; block++) {
      uint32_t b[COLUMNS][4];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        ldmatrix(b[c], x + piece_at<16>(c * 8 + lane % 8, block * 4 + lane / 8));
#pragma unroll
        for (int i = 0; i < 4; i++) b[c][i] = lifted(b[c][i]);
      }
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        uint32_t w[4], first[4], second[4];
        ldmatrix(w, codes + piece_at<8>(m * 16 + lane % 16, block * 2 + lane / 16));
        of_bytes(w[0], first[0], first[2]), of_bytes(w[1], first[1], first[3]);
        of_bytes(w[2], second[0], second[2]), of_bytes(w[3], second[1], second[3]);
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
  static constexpr float ROW_UNIT = 0.f, UNIT = CODE_UNIT;

  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x,
                                                  uint32_t scales) {
    const uint32_t ones[4] = {EVEN_ONES, EVEN_ONES, ODD_ONES, ODD_ONES};
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
#pragma unroll
          for (int k = 0; k < 4; k++) b[i][c][k] = k % 2 ? lifted_odd(b[i][c][k]) : lifted(b[i][c][k]);
          mma(sums[i][c], ones, b[i][c][0], b[i][c][1]);
          mma(sums[i][c], ones, b[i][c][2], b[i][c][3]);
        }
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        uint32_t w[4];
        ldmatrix(w, codes + piece_at<4>(m * 16 + lane % 16, pair * 2 + lane / 16));
#pragma unroll
        for (int i = 0; i < 2; i++) {
          uint32_t top = w[2 * i], bottom = w[2 * i + 1], first[4], second[4];
          of_nibbles(top, first[0], first[2]), of_nibbles(bottom, first[1], first[3]);
          of_nibbles(top >> 8, second[0], second[2]), of_nibbles(bottom >> 8, second[1], second[3]);
          float2 low = scale(scales, m * 16 + g, pair * 2 + i), high = scale(scales, m * 16 + g + 8, pair * 2 + i);
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

// Q6_K: the lower four bits of codes q as Nibbles have them; beside them, for each pair of blocks, the upper two of all
// of a lane's inputs in one word, then the chunk's eight scales, f16, of 16 inputs each, for scale · (q - 32). Of
// block i of the pair, input 8p + 2t is at bit 8i + 2p, the one after it 16 bits higher.
struct Sixes {
  static constexpr int K = 128, ROW_BYTES = 64, SCALE_BYTES = 48;
  static constexpr float ROW_UNIT = 0.f, UNIT = CODE_UNIT;

  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x,
                                                  uint32_t scales) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      uint32_t b[2][COLUMNS][4];
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          ldmatrix(b[i][c], x + piece_at<16>(c * 8 + lane % 8, (pair * 2 + i) * 4 + lane / 8));
#pragma unroll
          for (int k = 0; k < 4; k++) b[i][c][k] = lifted(b[i][c][k]);
        }
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        uint32_t w[4];
        ldmatrix(w, codes + piece_at<4>(m * 16 + lane % 16, pair * 2 + lane / 16));
        uint32_t beside = scales + (m * 16 + g) * SCALE_BYTES;  // of row g; row g + 8 is 8 · SCALE_BYTES further
        uint32_t up_top = word(beside + pair * 16 + t * 4), up_bottom = word(beside + 8 * SCALE_BYTES + pair * 16 + t * 4);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          uint32_t top = w[2 * i], bottom = w[2 * i + 1];
          // Upper bits of the block's first input to bit 4.
          uint32_t h = i ? up_top >> 4 : up_top << 4, k = i ? up_bottom >> 4 : up_bottom << 4;
          uint32_t first[4] = {of_sixes(top, h), of_sixes(bottom, k), of_sixes(top >> 4, h >> 2), of_sixes(bottom >> 4, k >> 2)};
          uint32_t second[4] = {of_sixes(top >> 8, h >> 4), of_sixes(bottom >> 8, k >> 4), of_sixes(top >> 12, h >> 6),
                                of_sixes(bottom >> 12, k >> 6)};
          float2 low = halves(beside + 32 + (pair * 2 + i) * 4);
          float2 high = halves(beside + 8 * SCALE_BYTES + 32 + (pair * 2 + i) * 4);
#pragma unroll
          for (int c = 0; c < COLUMNS; c++) {
            float one[4] = {}, two[4] = {};
            mma(one, first, b[i][c][0], b[i][c][1]);
            mma(two, second, b[i][c][2], b[i][c][3]);
#pragma unroll
            for (int j = 0; j < 4; j++) {
              float2 f = j < 2 ? low : high;
              acc[m][c][j] += one[j] * f.x + two[j] * f.y;
            }
          }
        }
      }
    }
  }
  static __device__ __forceinline__ uint32_t word(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
  }
  static __device__ __forceinline__ float2 halves(uint32_t at) {
    uint32_t v = word(at);
    return __half22float2(*(__half2 *)&v);
  }
};

// FP8: floats of four bits of exponent and three of mantissa (E4M3), a factor for each row. A lane's bytes as in Bytes.
//
// Sign, exponent and mantissa in bf16's places are the number times 2^-120, subnormal ones included. Half of that is
// made up for in the activations, which may be as large as 2^67, half in the rows' factors. In f16's places they are the
// number times 2^-8, all made up for in the factors.
struct Floats {
  static constexpr int K = 128, ROW_BYTES = 128, SCALE_BYTES = 0;
#if defined(NUMBER_BF16)
  static constexpr float ROW_UNIT = 0x1p60f, UNIT = 1.f;
  static constexpr int SHIFT = 4;  // of a byte's lower seven bits
#else
  static constexpr float ROW_UNIT = 0x1p8f, UNIT = 1.f;
  static constexpr int SHIFT = 7;
#endif
  static constexpr uint32_t LOWER = 0x007f007f << SHIFT, SIGN = 0x80008000;

  // Bytes 0 and 2, and bytes 1 and 3.
  static __device__ __forceinline__ uint32_t even(uint32_t w) { return w << SHIFT & LOWER | w << 8 & SIGN; }
  static __device__ __forceinline__ uint32_t odd(uint32_t w) { return w >> (8 - SHIFT) & LOWER | w & SIGN; }
  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x, uint32_t) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < 4; block++) {
      uint32_t b[COLUMNS][4];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        ldmatrix(b[c], x + piece_at<16>(c * 8 + lane % 8, block * 4 + lane / 8));
#pragma unroll
        for (int i = 0; i < 4; i++) b[c][i] = lifted(b[c][i]);
      }
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        uint32_t w[4];
        ldmatrix(w, codes + piece_at<8>(m * 16 + lane % 16, block * 2 + lane / 16));
        uint32_t first[4] = {even(w[0]), even(w[1]), odd(w[0]), odd(w[1])};
        uint32_t second[4] = {even(w[2]), even(w[3]), odd(w[2]), odd(w[3])};
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          mma(acc[m][c], first, b[c][0], b[c][1]);
          mma(acc[m][c], second, b[c][2], b[c][3]);
        }
      }
    }
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
GEMV(bytes, Bytes, 8, 3, 10, 2)
GEMV(bytes, Bytes, 16, 3, 8, 2)
GEMV(bytes, Bytes, 32, 3, 4, 3)
GEMV(nibbles, Nibbles, 8, 3, 8, 3)
GEMV(nibbles, Nibbles, 16, 3, 8, 3)
GEMV(sixes, Sixes, 8, 3, 8, 3)
GEMV(sixes, Sixes, 16, 3, 8, 2)
GEMV(floats, Floats, 8, 3, 8, 3)
GEMV(floats, Floats, 16, 3, 8, 2)
GEMV(floats, Floats, 32, 3, 4, 3)
