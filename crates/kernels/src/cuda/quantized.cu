// Makes and unmakes the matrices of gemv_quant.cu, which says how they lie.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "mma.cuh"

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

// A row of bf16 numbers as eight-bit floats (E4M3) in the order of `byte_of`, over a factor of the row that makes 448, the
// type's largest, of its largest number. A row with a number that is not finite has NaN for factor; one without any above
// 1e-30 is zeros. `of(i, pairs)` gives sixteen numbers. A block a row, of at most 16 · KEPT numbers a thread.
constexpr int KEPT = 3;
template <class Of> __device__ __forceinline__ void round_row(Of of, uint8_t *codes, float *factor, int width) {
  __shared__ float scratch[33];
  uint32_t kept[KEPT][8];
  float most = 0.f;
  bool is_finite = true;
#pragma unroll
  for (int k = 0; k < KEPT; k++) {
    int i = k * blockDim.x + threadIdx.x;
    if (i >= width / 16) break;
    of(i, kept[k]);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 two = unpack(kept[k][j]);
      is_finite &= isfinite(two.x) && isfinite(two.y);
      most = fmaxf(most, fmaxf(fabsf(two.x), fabsf(two.y)));
    }
  }
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = most;
  is_finite = __syncthreads_and(is_finite);
  if (threadIdx.x < 32) {
    most = warp_max(threadIdx.x < blockDim.x / 32 ? scratch[threadIdx.x] : 0.f);
    if (threadIdx.x == 0) scratch[32] = most;
  }
  __syncthreads();
  most = scratch[32];
  float inverse = most > 1e-30f ? 448.f / most : 0.f;
  if (threadIdx.x == 0) *factor = is_finite ? most / 448.f : NAN;
#pragma unroll
  for (int k = 0; k < KEPT; k++) {
    int i = k * blockDim.x + threadIdx.x;
    if (i >= width / 16) break;
    uint32_t words[4];
#pragma unroll
    for (int t = 0; t < 4; t++) {  // inputs 2t, 2t + 8, 2t + 1, 2t + 9
      float2 low = unpack(kept[k][t]), high = unpack(kept[k][t + 4]);
      uint32_t one = __nv_cvt_float2_to_fp8x2({low.x * inverse, high.x * inverse}, __NV_SATFINITE, __NV_E4M3);
      uint32_t two = __nv_cvt_float2_to_fp8x2({low.y * inverse, high.y * inverse}, __NV_SATFINITE, __NV_E4M3);
      words[t] = one | two << 16;
    }
    ((uint4 *)codes)[i] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}
__device__ __forceinline__ void sixteen(const bf16 *from, int i, uint32_t (&pairs)[8]) {
  uint4 v[2] = {((const uint4 *)from)[2 * i], ((const uint4 *)from)[2 * i + 1]};
  const uint32_t *words = (const uint32_t *)v;
#pragma unroll
  for (int j = 0; j < 8; j++) pairs[j] = words[j];
}

// Of rows of bf16.
extern "C" __global__ void round_rows(const bf16 *from, uint8_t *codes, float *factors, int width) {
  begin();
  size_t at = (size_t)blockIdx.x * width;
  round_row([&](int i, uint32_t(&pairs)[8]) { sixteen(from + at, i, pairs); }, codes + at, factors + blockIdx.x, width);
}

// Of rows of f32 after their norm, as `rms_norm` in rows.cu has it.
extern "C" __global__ void rms_norm_rounded(const float *x, const bf16 *weight, uint8_t *codes, float *factors, int width,
                                            float eps) {
  __shared__ float scratch[33];
  begin();
  size_t at = (size_t)blockIdx.x * width;
  const float4 *from = (const float4 *)(x + at);
  float sum = 0.f;
  for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
    float4 v = from[i];
    sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
  auto of = [&](int i, uint32_t(&pairs)[8]) {
    uint32_t w[8];
    sixteen(weight, i, w);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float4 v = from[4 * i + j];
      float2 a = unpack(w[2 * j]), b = unpack(w[2 * j + 1]);
      pairs[2 * j] = pack(v.x * scale * a.x, v.y * scale * a.y);
      pairs[2 * j + 1] = pack(v.z * scale * b.x, v.w * scale * b.y);
    }
  };
  round_row(of, codes + at, factors + blockIdx.x, width);
}

// Of rows of gates and ups after SwiGLU, as `swiglu` in rows.cu has it.
extern "C" __global__ void swiglu_rounded(const bf16 *gate_up, uint8_t *codes, float *factors, int width) {
  begin();
  const bf16 *gates = gate_up + (size_t)blockIdx.x * 2 * width;
  auto of = [&](int i, uint32_t(&pairs)[8]) {
    uint32_t ups[8];
    sixteen(gates, i, pairs);
    sixteen(gates + width, i, ups);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 g = unpack(pairs[j]), u = unpack(ups[j]);
      pairs[j] = pack(g.x / (1.f + __expf(-g.x)) * u.x, g.y / (1.f + __expf(-g.y)) * u.y);
    }
  };
  round_row(of, codes + (size_t)blockIdx.x * width, factors + blockIdx.x, width);
}

// A block's input as a number; `place` as in `arrange`.
template <int FORMAT>
__device__ __forceinline__ float number(const uint8_t *codes, const uint8_t *scales, size_t row, size_t place, int n_blocks,
                                        int block, int i) {
  const uint8_t *from = codes + (row * n_blocks + block) * (FORMAT == Q8_0 || FORMAT == FP8 ? 32 : 16);
  if (FORMAT == Q8_0) return __half2float(((const __half *)scales)[place * 4 + block % 4]) * (int8_t)from[byte_of(i)];
  if (FORMAT == FP8) {
    __nv_fp8_e4m3 v;
    v.__x = from[byte_of(i)];
    return (float)v * ((const float *)scales)[row];
  }
  int q = from[nibble_of(i) / 2] >> nibble_of(i) % 2 * 4 & 15;
  if (FORMAT == Q6_K) {
    const uint8_t *beside = scales + place * SIXES_BESIDE;
    q |= (beside[upper_byte_of(block, i)] >> upper_bit_of(i) & 3) << 4;
    return __half2float(((const __half *)(beside + SIXES_SCALES))[block % 4 * 2 + i / 16]) * (q - 32);
  }
  float2 both = __half22float2(((const __half2 *)scales)[place * 4 + block % 4]);
  return both.x * q - both.y;
}

// All of a matrix as bf16, [n_out][n_in]. A thread does 8 inputs of a block.
template <int FORMAT> __device__ void dequantize(const uint8_t *codes, const uint8_t *scales, bf16 *to, int n_out, int n_in) {
  begin();
  int n_blocks = n_in / 32;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (size_t)n_out * n_blocks * 4;
       i += (size_t)gridDim.x * blockDim.x) {
    size_t row = i / (n_blocks * 4);
    int block = i / 4 % n_blocks, part = i % 4;
    size_t place = (size_t)(block / 4) * n_out + row;
    uint32_t eight[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      int input = part * 8 + 2 * k;
      eight[k] = pack(number<FORMAT>(codes, scales, row, place, n_blocks, block, input),
                      number<FORMAT>(codes, scales, row, place, n_blocks, block, input + 1));
    }
    *(uint4 *)(to + row * n_in + block * 32 + part * 8) = make_uint4(eight[0], eight[1], eight[2], eight[3]);
  }
}
extern "C" __global__ void dequantize_bytes(const uint8_t *c, const uint8_t *s, bf16 *to, int n_out, int n_in) {
  dequantize<Q8_0>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_nibbles(const uint8_t *c, const uint8_t *s, bf16 *to, int n_out, int n_in) {
  dequantize<Q4_K>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_sixes(const uint8_t *c, const uint8_t *s, bf16 *to, int n_out, int n_in) {
  dequantize<Q6_K>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_floats(const uint8_t *c, const uint8_t *s, bf16 *to, int n_out, int n_in) {
  dequantize<FP8>(c, s, to, n_out, n_in);
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
