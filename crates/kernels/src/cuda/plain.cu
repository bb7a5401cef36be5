// Kernels that are the same whatever the model's type: choice of a token, angles, rows moved, read bandwidth.
#include "common.cuh"

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
  begin();
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

// Reads n times 16 bytes and keeps next to nothing: what memory bandwidth is measured with.
extern "C" __global__ void read_all(const uint4 *from, size_t n, uint32_t *sink) {
  begin();
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
