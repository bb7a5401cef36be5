// Attention of chunks of new tokens, bf16 or f16, with Hopper's asynchronous tensor core instructions.
//
// A block is 128 queries of one head: two warpgroups of 64 multiply, a warp of a third has the tensor memory unit fetch
// keys and values in tiles of KEYS. Scores stay in registers. While a tile's scores become weights, the product of the
// weights before with their values runs.
//
// Sixteen keys are fetched at a time: those are in one block of the cache, or in a row in `fresh`. So keys are
// numbered here by places: a cached key's place is its position, and the chunk's own keys begin at the next multiple
// of sixteen. Rows of shared memory whose place holds no key in sight are cleared, because what lies in memory there
// may be no number at all.
#include "wgmma.cuh"

template <int D, int KEYS> struct PrefillShape {
  static constexpr int QUERIES = 128, STAGES = 2;
  static constexpr int PANELS = D / 64, TILE_BYTES = KEYS * D * 2, QUERY_BYTES = QUERIES * D * 2;
  // Barriers (of K and V, full and empty, a stage; queries) lie behind the tiles; shared memory is aligned by hand.
  static constexpr int SHARED_BYTES = 1024 + QUERY_BYTES + 2 * STAGES * TILE_BYTES + 128;
};

// `cache` and `fresh` map the cache as [line][D] and the chunks' keys and values as [row][2 · n_kv · D], in boxes of
// 16 rows and 64 columns.
template <int D, int KEYS>
__device__ __forceinline__ void attend_prefill(const Step &s, const Cache &c, const Number *q, int q_stride,
                                               const TensorMap *cache, const TensorMap *fresh, Number *out, int n_q,
                                               float scale_log2, int e0, int ends_only) {
  using Shape = PrefillShape<D, KEYS>;
  constexpr int QUERIES = Shape::QUERIES, STAGES = Shape::STAGES, TILE_BYTES = Shape::TILE_BYTES;
  constexpr int PANELS = Shape::PANELS, GROUPS = KEYS / 16;
  constexpr int K_PANEL = KEYS * 128, Q_PANEL = QUERIES * 128;
  extern __shared__ char shared[];
  allow_next();
  int h = blockIdx.x, e = e0 + blockIdx.z, head = h / (n_q / c.n_kv);
  // The longest rows first; or those alone that hold the chunk's last one.
  int len = s.len[e], q0 = ends_only ? (len - 1) / QUERIES * QUERIES : (gridDim.y - 1 - blockIdx.y) * QUERIES;
  if (q0 >= len) return;
  int start = s.start[e], first_row = s.first_row[e];
  int lo = first_key(c, start + q0), hi = start + min(q0 + QUERIES, len) - 1;  // positions in sight
  int own = (start + 15) / 16 * 16, gap = own - start;                         // the chunk's first place
  int tile0 = (lo < start ? lo : lo + gap) / KEYS, tile1 = (hi + gap) / KEYS + 1;

  uint32_t q_at = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
  uint32_t k_at = q_at + Shape::QUERY_BYTES, v_at = k_at + STAGES * TILE_BYTES, barriers = v_at + STAGES * TILE_BYTES;
  auto full = [&](int which, int stage) { return barriers + (which * STAGES + stage) * 8; };
  auto empty = [&](int which, int stage) { return barriers + ((2 + which) * STAGES + stage) * 8; };
  if (threadIdx.x == 0) {
    for (int which = 0; which < 2; which++)
      for (int stage = 0; stage < STAGES; stage++) {
        barrier_init(full(which, stage), 1);
        barrier_init(empty(which, stage), 8);
      }
    fence_async();
  }
  __syncthreads();
  wait_previous();
  int lane = threadIdx.x % 32;

  if (threadIdx.x < 128) {  // fetches
    registers_down<24>();
    if (threadIdx.x >= 32) return;
    const int *table = s.blocks + (c.ring_rows ? s.w_off[e] : s.g_off[e]);
    int group = lane % GROUPS, panel = lane / GROUPS;  // of a lane's copies of keys and of values
    for (int tile = tile0; tile < tile1; tile++) {
      int stage = (tile - tile0) % STAGES, parity = (tile - tile0) / STAGES & 1;
      int place = tile * KEYS + group * 16;
      bool there = panel < PANELS && place <= hi + gap, is_cached = place < own;
      int x = panel * 64, y = first_row + place - own, v_x = 0, v_y = 0;
      if (is_cached) {
        int row = c.ring_rows ? place % c.ring_rows : place;
        int block = there ? table[row / c.block_tokens] : 0;
        y = (block * 2 * c.n_kv + head) * c.block_tokens + row % c.block_tokens;
        v_y = c.n_kv * c.block_tokens;
      } else {
        x += head * D;
        v_x = c.n_kv * D;
      }
      int bytes = __popc(__ballot_sync(~0u, there)) * 2048;
      uint32_t to = stage * TILE_BYTES + panel * K_PANEL + group * 2048;
#pragma unroll
      for (int which = 0; which < 2; which++) {
        barrier_wait(empty(which, stage), parity ^ 1);
        if (lane == 0) barrier_expect(full(which, stage), bytes);
        __syncwarp();
        if (there)
          copy_box((which ? v_at : k_at) + to, is_cached ? cache : fresh, x + which * v_x, y + which * v_y,
                   full(which, stage));
      }
    }
    return;
  }

  registers_up<240>();
  int group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, g = lane / 4, t = lane % 4;
  for (int i = threadIdx.x % 128; i < 64 * D / 8; i += 128) {  // the warpgroup's queries
    int r = group * 64 + i / (D / 8), chunk = i % (D / 8);
    bool valid = q0 + r < len;
    const Number *from = q + (size_t)(first_row + (valid ? q0 + r : 0)) * q_stride + h * D + chunk * 8;
    copy16(q_at + chunk / 8 * Q_PANEL + panel_offset(r, chunk % 8), from, valid);
  }
  copies_commit();
  copies_wait<0>();
  auto gather = [&] {  // the warpgroup's threads
    fence_async();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
  };
  gather();

  int row0 = start + q0 + group * 64, row_warp = row0 + warp * 16;  // positions of first queries
  int lo_mine = first_key(c, row0);
  int mine0 = min(max(tile0, (lo_mine < start ? lo_mine : lo_mine + gap) / KEYS), tile1 - 1);
  int mine1 = min(tile1, (row0 + 63 + gap) / KEYS + 1);
  auto stage_of = [&](int tile) { return (tile - tile0) % STAGES; };
  auto await = [&](int which, int tile) { barrier_wait(full(which, stage_of(tile)), (tile - tile0) / STAGES & 1); };
  auto release = [&](int which, int tile) {
    if (lane == 0) barrier_arrive(empty(which, stage_of(tile)));
  };
  auto pass = [&](int tile) {  // a tile that none of these queries sees
    await(0, tile);
    release(0, tile);
    await(1, tile);
    release(1, tile);
  };
  float o[D / 2] = {};
  float sc[KEYS / 2];
  uint32_t weights[KEYS / 16][4];
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f}, shrink[2];

  auto issue_scores = [&](int tile) {
    uint32_t a = q_at + group * 64 * 128, b = k_at + stage_of(tile) * TILE_BYTES;
    wgmma_begin();
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++)
      wgmma_rows(sc, panel_descriptor(a + kk / 4 * Q_PANEL + kk % 4 * 32, 16),
                 panel_descriptor(b + kk / 4 * K_PANEL + kk % 4 * 32, 16), kk > 0);
    wgmma_commit();
  };
  auto issue_sums = [&](int tile) {
    uint32_t b = v_at + stage_of(tile) * TILE_BYTES;
    int end = (tile + 1) * KEYS - 1;
    if ((gap && tile * KEYS < own && end >= start) || end > hi + gap) {
      // Both warpgroups clear the same rows; one that comes late clears what is clear.
      for (int i = threadIdx.x % 128; i < KEYS * PANELS; i += 128) {
        int r = i % KEYS, place = tile * KEYS + r;
        if ((place < start || place >= own) && place <= hi + gap) continue;
        uint32_t at = b + i / KEYS * K_PANEL + r * 128;
#pragma unroll
        for (int j = 0; j < 8; j++) asm volatile("st.shared.v4.b32 [%0], {0, 0, 0, 0};" ::"r"(at + j * 16) : "memory");
      }
      gather();
    }
    wgmma_begin();
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++) wgmma_columns(o, weights[kk], panel_descriptor(b + kk * 2048, K_PANEL));
    wgmma_commit();
  };
  // Scores to weights, in place; `shrink` is what sums so far are to be multiplied with.
  auto soften = [&](int tile) {
    int place0 = tile * KEYS;
    int p0 = place0 < own ? place0 : place0 - gap;
    bool whole = (place0 + KEYS <= start || place0 >= own) && p0 + KEYS - 1 <= row_warp && p0 >= first_key(c, row_warp + 15);
    float top[2] = {most[0], most[1]};
    if (!whole) {
      int low[2] = {first_key(c, row_warp + g), first_key(c, row_warp + g + 8)};
#pragma unroll
      for (int i = 0; i < KEYS / 2; i++) {
        int place = place0 + i / 4 * 8 + 2 * t + (i & 1), query = row_warp + g + 8 * (i / 2 & 1);
        int p = place < own ? place : place - gap;
        if (p > query || p < low[i / 2 & 1] || (place >= start && place < own)) sc[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) top[i / 2 & 1] = fmaxf(top[i / 2 & 1], sc[i]);
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      offset[r] = top[r] == -INFINITY ? 0.f : top[r] * scale_log2;
      shrink[r] = exp2_fast(most[r] * scale_log2 - offset[r]);
      most[r] = top[r];
      total[r] *= shrink[r];
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      sc[i] = exp2_fast(sc[i] * scale_log2 - offset[i / 2 & 1]);
      total[i / 2 & 1] += sc[i];
    }
  };
  auto keep_weights = [&] {
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++)
#pragma unroll
      for (int i = 0; i < 4; i++) weights[kk][i] = pack(sc[kk * 8 + 2 * i], sc[kk * 8 + 2 * i + 1]);
  };

  for (int tile = tile0; tile < mine0; tile++) pass(tile);
  await(0, mine0);
  issue_scores(mine0);
  wgmma_wait<0>();
  hold(sc);
  release(0, mine0);
  soften(mine0);
  keep_weights();
  for (int tile = mine0 + 1; tile < mine1; tile++) {
    await(0, tile);
    issue_scores(tile);
    await(1, tile - 1);
    issue_sums(tile - 1);
    wgmma_wait<1>();
    hold(sc);
    release(0, tile);
    soften(tile);
    wgmma_wait<0>();
    hold(o);
    release(1, tile - 1);
#pragma unroll
    for (int i = 0; i < D / 2; i++) o[i] *= shrink[i / 2 & 1];
    keep_weights();
  }
  await(1, mine1 - 1);
  issue_sums(mine1 - 1);
  wgmma_wait<0>();
  hold(o);
  release(1, mine1 - 1);
  for (int tile = mine1; tile < tile1; tile++) pass(tile);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    int query = q0 + group * 64 + warp * 16 + g + 8 * r;
    if (query >= len) continue;
    Number *to = out + ((size_t)(first_row + query) * n_q + h) * D;
    float scale = 1.f / total[r];
#pragma unroll
    for (int j = 0; j < D / 8; j++)
      *(uint32_t *)(to + j * 8 + 2 * t) = pack(o[j * 4 + 2 * r] * scale, o[j * 4 + 2 * r + 1] * scale);
  }
}
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define PREFILL(D, KEYS)                                                                                             \
  extern "C" __global__ __launch_bounds__(384, 1) void attend_wgmma_##D(                                            \
      const __grid_constant__ Step s, const __grid_constant__ Cache c, const Number *q, int qs,                        \
      const __grid_constant__ TensorMap cache, const __grid_constant__ TensorMap fresh, Number *o, int n,          \
      float scale, int e0, int ends_only) {                                                                          \
    attend_prefill<D, KEYS>(s, c, q, qs, &cache, &fresh, o, n, scale, e0, ends_only);                                \
  }
PREFILL(64, 128)
PREFILL(128, 128)
PREFILL(256, 64)
#endif
