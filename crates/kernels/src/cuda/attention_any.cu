// Attention for any type and head width: exact, and slow. One block a (row, query head).
#include "number.cuh"

extern "C" __global__ void attend_any(Step s, Cache c, const Number *q, int q_stride, const Number *fresh, Number *out, int n_q,
                                      float scale, int row0) {
  constexpr int KEYS = 128;
  extern __shared__ float shared[];  // query, then sums: head_dim each
  __shared__ float weights[KEYS];
  __shared__ float scratch[2];
  begin();
  int row = row0 + blockIdx.x, h = blockIdx.y, d = c.head_dim, head = h / (n_q / c.n_kv);
  int pos = s.pos[row];
  if (pos < 0) return;
  int e = s.entry[row], start = s.start[e], kv = c.n_kv * d;
  bool alone = s.len[e] == 1;
  float *query = shared, *sums = shared + d;
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    query[i] = to_f32(q[(size_t)row * q_stride + h * d + i]) * scale;
    sums[i] = 0.f;
  }
  auto key = [&](int p, int which) -> const Number * {
    return alone || p < start ? cached<Number>(c, s, e, p, which, head)
                              : fresh + ((size_t)(s.first_row[e] + p - start) * 2 + which) * kv + head * d;
  };
  float most = -INFINITY, total = 0.f;
  for (int p0 = first_key(c, pos); p0 <= pos; p0 += KEYS) {
    int n = min(KEYS, pos - p0 + 1);
    __syncthreads();
    float score = -INFINITY;
    if ((int)threadIdx.x < n) {
      const Number *k = key(p0 + threadIdx.x, 0);
      score = 0.f;
      for (int i = 0; i < d; i++) score += query[i] * to_f32(k[i]);
    }
    weights[threadIdx.x] = score;
    __syncthreads();
    if (threadIdx.x < 32) {
      float m = -INFINITY, sum = 0.f;
      for (int i = threadIdx.x; i < n; i += 32) m = fmaxf(m, weights[i]);
      m = fmaxf(warp_max(m), most);
      for (int i = threadIdx.x; i < n; i += 32) {
        float w = expf(weights[i] - m);
        weights[i] = w;
        sum += w;
      }
      sum = warp_sum(sum);
      if (threadIdx.x == 0) scratch[0] = m, scratch[1] = sum;
    }
    __syncthreads();
    float shrink = expf(most - scratch[0]);
    most = scratch[0];
    total = total * shrink + scratch[1];
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
      float sum = sums[i] * shrink;
      for (int j = 0; j < n; j++) sum += weights[j] * to_f32(key(p0 + j, 1)[i]);
      sums[i] = sum;
    }
  }
  for (int i = threadIdx.x; i < d; i += blockDim.x)
    out[((size_t)row * n_q + h) * d + i] = from_f32<Number>(sums[i] / total);
}
