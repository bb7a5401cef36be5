// Unmakes the matrices of gemv_quant.cu, which says how they lie, and makes rows of eight-bit floats.
#include <cuda_fp8.h>

#include "codes.cuh"
#include "mma.cuh"

// A row of numbers as eight-bit floats (E4M3) in the order of `byte_of`, over a factor of the row that makes 448, the
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
__device__ __forceinline__ void sixteen(const Number *from, int i, uint32_t (&pairs)[8]) {
  uint4 v[2] = {((const uint4 *)from)[2 * i], ((const uint4 *)from)[2 * i + 1]};
  const uint32_t *words = (const uint32_t *)v;
#pragma unroll
  for (int j = 0; j < 8; j++) pairs[j] = words[j];
}

// Of rows as they are.
extern "C" __global__ void round_rows(const Number *from, uint8_t *codes, float *factors, int width) {
  begin();
  size_t at = (size_t)blockIdx.x * width;
  round_row([&](int i, uint32_t(&pairs)[8]) { sixteen(from + at, i, pairs); }, codes + at, factors + blockIdx.x, width);
}

// Of rows of f32 after their norm, as `rms_norm` in rows.cu has it.
extern "C" __global__ void rms_norm_rounded(const float *x, const Number *weight, uint8_t *codes, float *factors, int width,
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
extern "C" __global__ void swiglu_rounded(const Number *gate_up, uint8_t *codes, float *factors, int width) {
  begin();
  const Number *gates = gate_up + (size_t)blockIdx.x * 2 * width;
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

// All of a matrix as numbers of sixteen bits, [n_out][n_in]. A thread does 8 inputs of a block.
template <int FORMAT> __device__ void dequantize(const uint8_t *codes, const uint8_t *scales, Number *to, int n_out, int n_in) {
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
extern "C" __global__ void dequantize_bytes(const uint8_t *c, const uint8_t *s, Number *to, int n_out, int n_in) {
  dequantize<Q8_0>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_nibbles(const uint8_t *c, const uint8_t *s, Number *to, int n_out, int n_in) {
  dequantize<Q4_K>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_sixes(const uint8_t *c, const uint8_t *s, Number *to, int n_out, int n_in) {
  dequantize<Q6_K>(c, s, to, n_out, n_in);
}
extern "C" __global__ void dequantize_floats(const uint8_t *c, const uint8_t *s, Number *to, int n_out, int n_in) {
  dequantize<FP8>(c, s, to, n_out, n_in);
}
