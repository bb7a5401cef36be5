// Attention of one new token per sequence, bf16, on tensor cores.
//
// A block is one (part of the keys, K/V head, sequence). The query heads that share a K/V head are the 16 rows of
// the matrix instruction, so keys and values are read once for all of them. Each of four warps walks its own tiles
// of 16 keys with its own ring of shared-memory stages: no barrier until the warps' results are merged.
#include "mma.cuh"

constexpr int WARPS = 4;

template <int D, int STAGES>
__device__ void attend_decode(Step s, Cache c, const bf16 *q, int q_stride, bf16 *out, float *part_sum,
                              float2 *part_norm, int n_q, float scale_log2) {
  constexpr int TILE = 16 * D;  // elements
  constexpr int CHUNKS = D / 8;
  extern __shared__ __align__(128) bf16 stages[];
  __shared__ float2 norms[WARPS][16];
  begin();
  int split = blockIdx.x, head = blockIdx.y, e = blockIdx.z, n_splits = gridDim.x;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int group = n_q / c.n_kv;
  int pos = s.pos[e];
  if (pos < 0) return;
  int lo = first_key(c, pos);
  int tile_first = lo / 16, n_tiles = pos / 16 + 1 - tile_first;
  int per_split = (n_tiles + n_splits - 1) / n_splits;
  int tile0 = tile_first + split * per_split;
  int tile1 = min(tile0 + per_split, tile_first + n_tiles);
  if (tile0 >= tile1) return;

  const bf16 *data = (const bf16 *)c.data;
  const int *table = s.blocks + (c.ring_rows ? s.w_off[e] : s.g_off[e]);
  bf16 *mine = stages + warp * STAGES * 2 * TILE;
  uint32_t mine_at = (uint32_t)__cvta_generic_to_shared(mine);
  auto fetch = [&](int tile, int stage) {
    if (tile < tile1) {
      int p = tile * 16, row = c.ring_rows ? p % c.ring_rows : p;
      size_t block = table[row / c.block_tokens];
      const bf16 *k = data + ((block * 2 * c.n_kv + head) * c.block_tokens + row % c.block_tokens) * D;
      const bf16 *v = k + (size_t)c.n_kv * c.block_tokens * D;
      uint32_t to = mine_at + stage * 4 * TILE;
#pragma unroll
      for (int i = lane; i < 16 * CHUNKS; i += 32) {
        int r = i / CHUNKS;
        bool valid = p + r >= lo && p + r <= pos;
        uint32_t at = to + swizzled<D>(r, i % CHUNKS);
        copy16(at, k + i * 8, valid);
        copy16(at + 2 * TILE, v + i * 8, valid);
      }
    }
    copies_commit();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) fetch(tile0 + warp + i * WARPS, i);

  uint32_t qa[D / 16][4];
  const bf16 *queries = q + (size_t)e * q_stride + (size_t)head * group * D;
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    const bf16 *low = queries + (size_t)g * D + kk * 16 + 2 * t, *high = low + 8 * D;
    qa[kk][0] = g < group ? *(const uint32_t *)low : 0;
    qa[kk][1] = g + 8 < group ? *(const uint32_t *)high : 0;
    qa[kk][2] = g < group ? *(const uint32_t *)(low + 8) : 0;
    qa[kk][3] = g + 8 < group ? *(const uint32_t *)(high + 8) : 0;
  }
  float o[D / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
  int stage = 0;
  for (int tile = tile0 + warp; tile < tile1; tile += WARPS) {
    copies_wait<STAGES - 2>();
    __syncwarp();
    fetch(tile + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
    uint32_t k_at = mine_at + stage * 4 * TILE, v_at = k_at + 2 * TILE;
    stage = (stage + 1) % STAGES;
    float sc[2][4] = {};
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t b[4];
      ldmatrix(b, k_at + swizzled<D>(lane % 8 + (lane & 16) / 2, 2 * kk + (lane / 8 & 1)));
      mma(sc[0], qa[kk], b[0], b[1]);
      mma(sc[1], qa[kk], b[2], b[3]);
    }
    float top[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int p = tile * 16 + n * 8 + 2 * t + (i & 1);
        sc[n][i] = p >= lo && p <= pos ? sc[n][i] * scale_log2 : -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], sc[n][i]);
      }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
    }
    if (__any_sync(~0u, top[0] > most[0] || top[1] > most[1])) {
      float shrink[2] = {exp2f(most[0] - top[0]), exp2f(most[1] - top[1])};
      total[0] *= shrink[0];
      total[1] *= shrink[1];
#pragma unroll
      for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[j][i] *= shrink[i / 2];
      most[0] = top[0];
      most[1] = top[1];
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sc[n][i] = exp2f(sc[n][i] - most[i / 2]);
        total[i / 2] += sc[n][i];
      }
    uint32_t a[4] = {pack(sc[0][0], sc[0][1]), pack(sc[0][2], sc[0][3]), pack(sc[1][0], sc[1][1]),
                     pack(sc[1][2], sc[1][3])};
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
      uint32_t b[4];
      ldmatrix_trans(b, v_at + swizzled<D>(lane % 16, j + lane / 16));
      mma(o[j], a, b[0], b[1]);
      mma(o[j + 1], a, b[2], b[3]);
    }
    __syncwarp();
  }
  copies_wait<0>();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    if (t == 0) norms[warp][g + 8 * r] = make_float2(most[r], total[r]);
  }
  __syncthreads();
  float *sums = (float *)stages;  // [warp][16][D]
#pragma unroll
  for (int j = 0; j < D / 8; j++)
#pragma unroll
    for (int r = 0; r < 2; r++)
      if (g + 8 * r < group)
        *(float2 *)(sums + (warp * 16 + g + 8 * r) * D + j * 8 + 2 * t) = make_float2(o[j][2 * r], o[j][2 * r + 1]);
  __syncthreads();
  for (int i = threadIdx.x; i < group * D; i += blockDim.x) {
    int r = i / D;
    float m = -INFINITY, norm = 0.f, sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) m = fmaxf(m, norms[w][r].x);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float f = exp2f(norms[w][r].x - m);
      norm += norms[w][r].y * f;
      sum += sums[(w * 16 + r) * D + i % D] * f;
    }
    size_t line = (size_t)e * n_q + head * group + r;
    if (n_splits == 1) {
      out[line * D + i % D] = __float2bfloat16_rn(sum / norm);
    } else {
      part_sum[(line * n_splits + split) * D + i % D] = sum;
      if (i % D == 0) part_norm[line * n_splits + split] = make_float2(m, norm);
    }
  }
}
#define DECODE(D, STAGES)                                                                                            \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void attend_decode_##D(                                       \
      Step s, Cache c, const bf16 *q, int qs, bf16 *o, float *ps, float2 *pn, int n, float scale) {                  \
    attend_decode<D, STAGES>(s, c, q, qs, o, ps, pn, n, scale);                                                      \
  }
DECODE(64, 4)
DECODE(128, 3)
DECODE(256, 2)

// Joins the parts of attend_decode(). One block a (query head, sequence), one thread a column.
extern "C" __global__ void attend_join(Step s, Cache c, bf16 *out, const float *part_sum, const float2 *part_norm,
                                       int n_q, int n_splits) {
  begin();
  int h = blockIdx.x, e = blockIdx.y, d = c.head_dim;
  int pos = s.pos[e];
  if (pos < 0) return;
  int n_tiles = pos / 16 + 1 - first_key(c, pos) / 16;
  int per_split = (n_tiles + n_splits - 1) / n_splits;
  int n = (n_tiles + per_split - 1) / per_split;
  size_t line = (size_t)e * n_q + h;
  float m = -INFINITY, norm = 0.f, sum = 0.f;
  for (int i = 0; i < n; i++) m = fmaxf(m, part_norm[line * n_splits + i].x);
  for (int i = 0; i < n; i++) {
    float2 p = part_norm[line * n_splits + i];
    float f = exp2f(p.x - m);
    norm += p.y * f;
    sum += part_sum[(line * n_splits + i) * d + threadIdx.x] * f;
  }
  out[line * d + threadIdx.x] = __float2bfloat16_rn(sum / norm);
}
