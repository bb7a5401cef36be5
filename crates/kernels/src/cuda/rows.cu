// Kernels that work row by row: embedding, norm, activation, random weights.
#include "number.cuh"

// x[row] = table[token[row]], in f32; zeros for padding.
extern "C" __global__ void embed(Step s, const Number *table, float *x, int width) {
  begin();
  int row = blockIdx.x;
  bool real = s.pos[row] >= 0;
  const Number *from = table + (size_t)(real ? s.token[row] : 0) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) x[(size_t)row * width + i] = real ? to_f32(from[i]) : 0.f;
}

// y[i] = x[rows[i]] / rms · weight, the sum of squares in f32; `rows` null: y[i] of x[i]. One block a row.
extern "C" __global__ void rms_norm(const float *x, const Number *weight, Number *y, float *y32, const int *rows, int width,
                                    float eps) {
  constexpr int KEPT = 4;  // groups of four numbers that a thread keeps between the passes
  __shared__ float scratch[33];
  begin();
  const float *from = x + (size_t)(rows ? rows[blockIdx.x] : blockIdx.x) * width;
  size_t at = (size_t)blockIdx.x * width;
  float sum = 0.f;
  if (width % 4 == 0 && width <= (int)blockDim.x * 4 * KEPT) {
    float4 v[KEPT];
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int i = k * blockDim.x + threadIdx.x;
      v[k] = i < width / 4 ? ((const float4 *)from)[i] : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int k = 0; k < KEPT; k++) sum += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
    float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
#pragma unroll
    for (int k = 0; k < KEPT; k++) {
      int i = (k * blockDim.x + threadIdx.x) * 4;
      if (i >= width) break;
      struct alignas(sizeof(Number) * 4) Four {
        Number at[4];
      } w = *(const Four *)(weight + i), rounded;
      float four[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
      for (int j = 0; j < 4; j++) rounded.at[j] = from_f32<Number>(four[j] = four[j] * scale * to_f32(w.at[j]));
      *(Four *)(y + at + i) = rounded;
      if (y32) *(float4 *)(y32 + at + i) = make_float4(four[0], four[1], four[2], four[3]);
    }
    return;
  }
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += from[i] * from[i];
  float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float v = from[i] * scale * to_f32(weight[i]);
    y[at + i] = from_f32<Number>(v);
    if (y32) y32[at + i] = v;
  }
}

// act[row][i] = silu(gate_up[row][i]) · gate_up[row][width + i].
extern "C" __global__ void swiglu(const Number *gate_up, Number *act, int width) {
  begin();
  const Number *from = gate_up + (size_t)blockIdx.y * 2 * width;
  Number *to = act + (size_t)blockIdx.y * width;
  if (sizeof(Number) == 2 && width % 8 == 0) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width / 8) return;
    uint4 g4 = ((const uint4 *)from)[i], u4 = ((const uint4 *)(from + width))[i], y4;
    const Number *g = (const Number *)&g4, *u = (const Number *)&u4;
    Number *y = (Number *)&y4;
#pragma unroll
    for (int j = 0; j < 16 / (int)sizeof(Number); j++) {
      float a = to_f32(g[j]);
      y[j] = from_f32<Number>(a / (1.f + __expf(-a)) * to_f32(u[j]));
    }
    ((uint4 *)to)[i] = y4;
  } else {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x) {
      float a = to_f32(from[i]);
      to[i] = from_f32<Number>(a / (1.f + expf(-a)) * to_f32(from[width + i]));
    }
  }
}

// Roughly normal numbers of the mean and deviation given: sums of four uniform ones. Value n depends on seed and n,
// and is a bf16 number whatever the type, so that models of all types can have equal weights (in f16 what is below its
// normal numbers is rounded once more).
extern "C" __global__ void random_fill(Number *to, size_t n, uint64_t seed, float mean, float deviation) {
  begin();
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    float sum = (float)((uint32_t)(z & 0xffff) + (uint32_t)(z >> 16 & 0xffff) + (uint32_t)(z >> 32 & 0xffff) +
                        (uint32_t)(z >> 48));
    to[i] = from_f32<Number>(to_f32(from_f32<bf16>(mean + deviation * (sum - 131070.f) / 37837.22f)));
  }
}
