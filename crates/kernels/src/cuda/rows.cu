// Kernels that work row by row: embedding, norm, activation, choice of a token, random weights, read bandwidth.
#include "common.cuh"

// x[row] = table[token[row]], in f32; zeros for padding.
template <typename T> __device__ void embed(Step s, const T *table, float *x, int width) {
  begin();
  int row = blockIdx.x;
  bool real = s.pos[row] >= 0;
  const T *from = table + (size_t)(real ? s.token[row] : 0) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) x[(size_t)row * width + i] = real ? to_f32(from[i]) : 0.f;
}
extern "C" __global__ void embed_f32(Step s, const float *t, float *x, int w) { embed(s, t, x, w); }
extern "C" __global__ void embed_bf16(Step s, const bf16 *t, float *x, int w) { embed(s, t, x, w); }

// y[i] = x[rows[i]] / rms · weight, the sum of squares in f32; `rows` null: y[i] of x[i]. One block a row.
template <typename T>
__device__ void rms_norm(const float *x, const T *weight, T *y, float *y32, const int *rows, int width, float eps) {
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
      struct alignas(sizeof(T) * 4) Four {
        T at[4];
      } w = *(const Four *)(weight + i), rounded;
      float four[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
      for (int j = 0; j < 4; j++) rounded.at[j] = from_f32<T>(four[j] = four[j] * scale * to_f32(w.at[j]));
      *(Four *)(y + at + i) = rounded;
      if (y32) *(float4 *)(y32 + at + i) = make_float4(four[0], four[1], four[2], four[3]);
    }
    return;
  }
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += from[i] * from[i];
  float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float v = from[i] * scale * to_f32(weight[i]);
    y[at + i] = from_f32<T>(v);
    if (y32) y32[at + i] = v;
  }
}
extern "C" __global__ void rms_norm_f32(const float *x, const float *w, float *y, float *y32, const int *rows, int n,
                                        float eps) {
  rms_norm(x, w, y, y32, rows, n, eps);
}
extern "C" __global__ void rms_norm_bf16(const float *x, const bf16 *w, bf16 *y, float *y32, const int *rows, int n,
                                         float eps) {
  rms_norm(x, w, y, y32, rows, n, eps);
}

// act[row][i] = silu(gate_up[row][i]) · gate_up[row][width + i].
template <typename T> __device__ void swiglu(const T *gate_up, T *act, int width) {
  begin();
  const T *from = gate_up + (size_t)blockIdx.y * 2 * width;
  T *to = act + (size_t)blockIdx.y * width;
  if (sizeof(T) == 2 && width % 8 == 0) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width / 8) return;
    uint4 g4 = ((const uint4 *)from)[i], u4 = ((const uint4 *)(from + width))[i], y4;
    const T *g = (const T *)&g4, *u = (const T *)&u4;
    T *y = (T *)&y4;
#pragma unroll
    for (int j = 0; j < 16 / (int)sizeof(T); j++) {
      float a = to_f32(g[j]);
      y[j] = from_f32<T>(a / (1.f + __expf(-a)) * to_f32(u[j]));
    }
    ((uint4 *)to)[i] = y4;
  } else {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x) {
      float a = to_f32(from[i]);
      to[i] = from_f32<T>(a / (1.f + expf(-a)) * to_f32(from[width + i]));
    }
  }
}
extern "C" __global__ void swiglu_f32(const float *g, float *a, int w) { swiglu(g, a, w); }
extern "C" __global__ void swiglu_bf16(const bf16 *g, bf16 *a, int w) { swiglu(g, a, w); }

// chosen[row] = the first index of the largest logit; -1 when a logit is NaN or infinite. One block a row.
extern "C" __global__ void argmax(const float *logits, int *chosen, int vocab) {
  __shared__ float values[32];
  __shared__ int indices[32];
  __shared__ int bad;
  begin();
  if (threadIdx.x == 0) bad = 0;
  __syncthreads();
  const float *row = logits + (size_t)blockIdx.x * vocab;
  float best = -INFINITY;
  int at = 0x7fffffff;
  bool broken = false;
  for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
    float v = row[i];
    broken |= !isfinite(v);
    if (v > best) best = v, at = i;
  }
  if (broken) bad = 1;
  auto reduce = [&] {
    for (int o = 16; o; o >>= 1) {
      float v = __shfl_xor_sync(~0u, best, o);
      int i = __shfl_xor_sync(~0u, at, o);
      if (v > best || (v == best && i < at)) best = v, at = i;
    }
  };
  reduce();
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = best, indices[threadIdx.x / 32] = at;
  __syncthreads();
  if (threadIdx.x < 32) {
    bool there = threadIdx.x < blockDim.x / 32;
    best = there ? values[threadIdx.x] : -INFINITY;
    at = there ? indices[threadIdx.x] : 0x7fffffff;
    reduce();
    if (threadIdx.x == 0) chosen[blockIdx.x] = bad ? -1 : at;
  }
}

// cos and sin of position · theta^(-i / half), [position][i], computed in f64.
extern "C" __global__ void rope_table(float2 *table, int half, double theta) {
  int pos = blockIdx.x;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    double angle = pos * pow(theta, -(double)i / half), sin, cos;
    sincos(angle, &sin, &cos);
    table[(size_t)pos * half + i] = make_float2((float)cos, (float)sin);
  }
}

// Rows of `width` times 16 bytes: `to[i]` of `from[rows[i]]`, or with `back`, `to[rows[i]]` of `from[i]`.
extern "C" __global__ void move_rows(const uint4 *from, uint4 *to, const int *rows, int width, int back) {
  begin();
  size_t here = (size_t)blockIdx.x * width, there = (size_t)rows[blockIdx.x] * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[(back ? there : here) + i] = from[(back ? here : there) + i];
}

// Roughly normal numbers of the mean and deviation given: sums of four uniform ones. Value n depends on seed and n,
// and is a bf16 number whatever the type, so that models of both types can have equal weights.
template <typename T> __device__ void random_fill(T *to, size_t n, uint64_t seed, float mean, float deviation) {
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + i * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    float sum = (float)((uint32_t)(z & 0xffff) + (uint32_t)(z >> 16 & 0xffff) + (uint32_t)(z >> 32 & 0xffff) +
                        (uint32_t)(z >> 48));
    to[i] = from_f32<T>(to_f32(from_f32<bf16>(mean + deviation * (sum - 131070.f) / 37837.22f)));
  }
}
extern "C" __global__ void random_f32(float *to, size_t n, uint64_t seed, float m, float d) {
  random_fill(to, n, seed, m, d);
}
extern "C" __global__ void random_bf16(bf16 *to, size_t n, uint64_t seed, float m, float d) {
  random_fill(to, n, seed, m, d);
}

// Reads n times 16 bytes and keeps next to nothing: what memory bandwidth is measured with.
extern "C" __global__ void read_all(const uint4 *from, size_t n, uint32_t *sink) {
  uint32_t x = 0;
  size_t stride = (size_t)gridDim.x * blockDim.x;
  size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; j++) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (x == 0x12345678) *sink = x;
}
