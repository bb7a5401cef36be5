// Attention of chunks of new tokens, bf16 or f16, on tensor cores.
//
// A block is 128 queries of one head, 16 a warp, and walks the keys in sight in tiles of KEYS: cached ones before
// the chunk, the chunk's own from `fresh`. Scores stay in registers; two stages of shared memory overlap copies
// with arithmetic.
#include "mma.cuh"

template <int D, int KEYS>
__device__ void attend_prefill(Step s, Cache c, const Number *q, int q_stride, const Number *fresh, Number *out, int n_q,
                               float scale_log2, int e0, int ends_only) {
  constexpr int CHUNKS = D / 8, QUERIES = 128, TILE = KEYS * D;
  constexpr bool KEEP_Q = D <= 128;
  extern __shared__ __align__(128) Number shared[];  // queries, then [stage][k, v][KEYS][D]
  begin();
  int e = e0 + blockIdx.z, h = blockIdx.y, head = h / (n_q / c.n_kv);
  int len = s.len[e], q0 = ends_only ? (len - 1) / QUERIES * QUERIES : (gridDim.x - 1 - blockIdx.x) * QUERIES;
  if (q0 >= len) return;
  int start = s.start[e], first_row = s.first_row[e], kv = c.n_kv * D;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint32_t q_at = (uint32_t)__cvta_generic_to_shared(shared), kv_at = q_at + QUERIES * D * 2;
  int lo = first_key(c, start + q0), hi = start + min(q0 + QUERIES, len) - 1;
  int tile0 = lo / KEYS, tile1 = hi / KEYS + 1;

  auto fetch = [&](int tile, int stage) {
    uint32_t to = kv_at + stage * TILE * 4;
    const int *table = s.blocks + (c.ring_rows ? s.w_off[e] : s.g_off[e]);
#pragma unroll 4
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += 256) {
      int r = i / CHUNKS, chunk = i % CHUNKS, p = tile * KEYS + r;
      bool valid = p >= lo && p <= hi;
      const Number *k = fresh, *v = fresh;
      if (valid && p >= start) {
        k = fresh + ((size_t)(first_row + p - start) * 2) * kv + head * D + chunk * 8;
        v = k + kv;
      } else if (valid) {
        int row = c.ring_rows ? p % c.ring_rows : p;
        size_t block = table[row / c.block_tokens];
        k = (const Number *)c.data + ((block * 2 * c.n_kv + head) * c.block_tokens + row % c.block_tokens) * D + chunk * 8;
        v = k + (size_t)c.n_kv * c.block_tokens * D;
      }
      uint32_t at = to + swizzled<D>(r, chunk);
      copy16(at, k, valid);
      copy16(at + TILE * 2, v, valid);
    }
    copies_commit();
  };
  for (int i = threadIdx.x; i < QUERIES * CHUNKS; i += 256) {
    int r = i / CHUNKS, chunk = i % CHUNKS;
    bool valid = q0 + r < len;
    const Number *from = q + (size_t)(first_row + (valid ? q0 + r : 0)) * q_stride + h * D + chunk * 8;
    copy16(q_at + swizzled<D>(r, chunk), from, valid);
  }
  fetch(tile0, 0);
  copies_wait<0>();
  __syncthreads();

  uint32_t qa[KEEP_Q ? D / 16 : 1][4];
  auto load_q = [&](uint32_t (&a)[4], int kk) {
    ldmatrix(a, q_at + swizzled<D>(warp * 16 + lane % 16, 2 * kk + lane / 16));
  };
  if (KEEP_Q) {
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) load_q(qa[KEEP_Q ? kk : 0], kk);
  }
  float o[D / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
  int row0 = start + q0 + warp * 16;  // position of the warp's first query
  int warp_lo = first_key(c, row0);
  for (int tile = tile0; tile < tile1; tile++) {
    int stage = (tile - tile0) & 1;
    copies_wait<0>();
    __syncthreads();
    if (tile + 1 < tile1) fetch(tile + 1, stage ^ 1);
    int p0 = tile * KEYS;
    if (p0 > row0 + 15 || p0 + KEYS <= warp_lo) continue;
    uint32_t k_at = kv_at + stage * TILE * 4, v_at = k_at + TILE * 2;
    float sc[KEYS / 8][4] = {};
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t a[4];
      if (KEEP_Q) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = qa[KEEP_Q ? kk : 0][i];
      } else {
        load_q(a, kk);
      }
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        uint32_t b[4];
        ldmatrix(b, k_at + swizzled<D>(n * 16 + lane % 8 + (lane & 16) / 2, 2 * kk + (lane / 8 & 1)));
        mma(sc[2 * n], a, b[0], b[1]);
        mma(sc[2 * n + 1], a, b[2], b[3]);
      }
    }
    bool whole = p0 + KEYS - 1 <= row0 && p0 >= first_key(c, row0 + 15);
    float top[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (!whole) {
          int p = p0 + n * 8 + 2 * t + (i & 1), query = row0 + g + 8 * (i / 2);
          if (p > query || p < first_key(c, query)) sc[n][i] = -INFINITY;
        }
        top[i / 2] = fmaxf(top[i / 2], sc[n][i]);
      }
    float shrink[2], offset[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      // A row may see no key of its first tile: keep its maximum finite for the subtraction only.
      offset[r] = top[r] == -INFINITY ? 0.f : top[r] * scale_log2;
      shrink[r] = exp2f(most[r] * scale_log2 - offset[r]);
    }
    if (__any_sync(~0u, top[0] > most[0] || top[1] > most[1])) {
#pragma unroll
      for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[j][i] *= shrink[i / 2];
      total[0] *= shrink[0];
      total[1] *= shrink[1];
    }
    most[0] = top[0];
    most[1] = top[1];
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sc[n][i] = exp2f(sc[n][i] * scale_log2 - offset[i / 2]);
        total[i / 2] += sc[n][i];
      }
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) {
      uint32_t a[4] = {pack(sc[2 * kk][0], sc[2 * kk][1]), pack(sc[2 * kk][2], sc[2 * kk][3]),
                       pack(sc[2 * kk + 1][0], sc[2 * kk + 1][1]), pack(sc[2 * kk + 1][2], sc[2 * kk + 1][3])};
#pragma unroll
      for (int j = 0; j < D / 8; j += 2) {
        uint32_t b[4];
        ldmatrix_trans(b, v_at + swizzled<D>(kk * 16 + lane % 16, j + lane / 16));
        mma(o[j], a, b[0], b[1]);
        mma(o[j + 1], a, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    int query = q0 + warp * 16 + g + 8 * r;
    if (query >= len) continue;
    Number *to = out + ((size_t)(first_row + query) * n_q + h) * D;
    float scale = 1.f / total[r];
#pragma unroll
    for (int j = 0; j < D / 8; j++)
      *(uint32_t *)(to + j * 8 + 2 * t) = pack(o[j][2 * r] * scale, o[j][2 * r + 1] * scale);
  }
}
#define PREFILL(D, KEYS)                                                                                             \
  extern "C" __global__ __launch_bounds__(256, 1) void attend_prefill_##D(                                          \
      Step s, Cache c, const Number *q, int qs, const Number *f, Number *o, int n, float scale, int e0, int ends_only) {   \
    attend_prefill<D, KEYS>(s, c, q, qs, f, o, n, scale, e0, ends_only);                                             \
  }
PREFILL(64, 64)
PREFILL(128, 64)
PREFILL(256, 64)
