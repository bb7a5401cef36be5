// One new token per sequence, from what W_pack made to attention's result: convolution, RoPE, cache write, attention;
// bf16 or f16, on tensor cores.
//
// A block is one (part of the keys, K/V head, sequence). The query heads that share a K/V head are the 16 rows of
// the matrix instruction, so keys and values are read once for all of them. Each of four warps walks its own tiles
// of 16 keys with its own ring of shared memory, keys and values by turns: no barrier until the warps' results are merged. The warp
// that meets the new token's tile convolves and rotates its key and puts it there, and into the cache. The last of a
// head's blocks to finish joins all parts.
//
// Cached keys are of earlier steps, so the first are fetched before waiting for the product.
#include "mma.cuh"

constexpr int WARPS = 4;
// Fewer tiles than this are not worth a block and the joining. A head is cut into 64 parts at most (attention.rs).
constexpr int LEAST_TILES = 3 * WARPS;

// The new token's key and value of one head, one warp's work: made from the product, carried rows and taps; kept in
// registers, D / 64 numbers of either half a lane.
template <int D> struct NewToken {
  static constexpr int EACH = D / 64, N = 4 * EACH;  // numbers: [k, v][half][EACH]
  const Number *raw;
  Number *carry, *to[2];
  const float *taps;
  Number row[N];

  static __device__ int column(int i, int lane) { return lane * EACH + i % EACH + i / EACH % 2 * (D / 2); }

  // Where everything is; reads nothing that kernels of the step write.
  __device__ NewToken(const Step &s, const Cache &c, const ConvLayer &l, const Number *packed, int e, int pos, int head) {
    int kv = c.n_kv * D;
    raw = packed + l.n_q * D + head * D;
    carry = (Number *)l.carry + (size_t)s.slot[e] * (l.taps_count - 1) * 2 * kv + head * D;
    to[0] = cached<Number>(c, s, e, pos, 0, head);
    to[1] = cached<Number>(c, s, e, pos, 1, head);
    taps = l.taps + head * l.taps_count;
  }
  __device__ void make(const ConvLayer &l, const float2 *angles, int n_kv, int lane) {
    int back = l.taps_count - 1, kv = n_kv * D;
    Number now[N], x[N];
    float2 turn[EACH];
    float sum[N] = {};
#pragma unroll
    for (int i = 0; i < N; i++) now[i] = raw[i / (2 * EACH) * kv + column(i, lane)];
#pragma unroll
    for (int i = 0; i < EACH; i++) turn[i] = angles[lane * EACH + i];
    if (back > 0)
#pragma unroll
      for (int i = 0; i < N; i++) x[i] = carry[i / (2 * EACH) * kv + column(i, lane)];
    for (int j = 0; j < back; j++) {  // a carried row is used, then replaced by its successor
      Number *at = carry + (size_t)j * 2 * kv;
      Number next[N];
#pragma unroll
      for (int i = 0; i < N; i++)
        next[i] = j + 1 < back ? at[2 * kv + i / (2 * EACH) * kv + column(i, lane)] : now[i];
#pragma unroll
      for (int i = 0; i < N; i++) {
        sum[i] += taps[i / (2 * EACH) * n_kv * l.taps_count + j] * to_f32(x[i]);
        at[i / (2 * EACH) * kv + column(i, lane)] = x[i] = next[i];
      }
    }
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += taps[i / (2 * EACH) * n_kv * l.taps_count + back] * to_f32(now[i]);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      float a = sum[i], b = sum[EACH + i];
      sum[i] = a * turn[i].x - b * turn[i].y;
      sum[EACH + i] = a * turn[i].y + b * turn[i].x;
    }
#pragma unroll
    for (int i = 0; i < N; i++) to[i / (2 * EACH)][column(i, lane)] = row[i] = from_f32<Number>(sum[i]);
  }
  // The key (which = 0) or value into its tile's shared memory, as row `r`.
  __device__ void put(uint32_t tile_at, int which, int r, int lane) const {
#pragma unroll
    for (int i = 0; i < 2 * EACH; i++) {
      int at = column(i, lane);
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(tile_at + swizzled<D>(r, at / 8) + at % 8 * 2),
                   "h"(bits_of(row[which * 2 * EACH + i]))
                   : "memory");
    }
  }
};

template <int D, int STAGES>
__device__ void attend_decode(Step s, Cache c, ConvLayer l, Number *out, float *part_sum, float2 *part_norm,
                              int *arrived, float scale_log2) {
  constexpr int TILE = 16 * D;  // elements of a stage
  constexpr int CHUNKS = D / 8;
  extern __shared__ __align__(128) Number stages[];
  __shared__ float2 norms[WARPS][16];
  __shared__ bool is_last;
  allow_next();
  int split = blockIdx.x, head = blockIdx.y, e = blockIdx.z, n_splits = gridDim.x;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int n_q = l.n_q, group = n_q / c.n_kv;
  int pos = s.pos[e];
  if (pos < 0) return;
  int lo = first_key(c, pos);
  int tile_first = lo / 16, tile_last = pos / 16, n_tiles = tile_last + 1 - tile_first;
  int per_split = max((n_tiles + n_splits - 1) / n_splits, LEAST_TILES);
  int n_parts = (n_tiles + per_split - 1) / per_split;
  int tile0 = tile_first + split * per_split;
  int tile1 = min(tile0 + per_split, tile_last + 1);
  if (tile0 >= tile1) return;

  const Number *data = (const Number *)c.data;
  const int *table = s.blocks + (c.ring_rows ? s.w_off[e] : s.g_off[e]);
  uint32_t mine_at = (uint32_t)__cvta_generic_to_shared(stages + warp * STAGES * TILE);
  // Half `half` of the warp's tiles: keys where even, values where odd.
  auto fetch = [&](int half, int stage) {
    int tile = tile0 + warp + half / 2 * WARPS;
    if (tile < tile1) {
      int p = tile * 16, row = c.ring_rows ? p % c.ring_rows : p;
      size_t block = table[row / c.block_tokens];
      const Number *from = data + (((block * 2 + half % 2) * c.n_kv + head) * c.block_tokens + row % c.block_tokens) * D;
      uint32_t to = mine_at + stage * 2 * TILE;
#pragma unroll
      for (int i = lane; i < 16 * CHUNKS; i += 32) {
        int r = i / CHUNKS;
        copy16(to + swizzled<D>(r, i % CHUNKS), from + i * 8, p + r >= lo && p + r < pos);
      }
    }
    copies_commit();
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) fetch(i, i);

  int width = (n_q + 2 * c.n_kv) * D;
  const Number *packed = (const Number *)l.packed + (size_t)e * width;
  const float2 *angles = l.angles + (size_t)pos * (D / 2);
  bool has_new = tile1 > tile_last && (tile_last - tile0) % WARPS == warp;
  NewToken<D> fresh(s, c, l, packed, e, pos, head);
  wait_previous();

  uint32_t qa[D / 16][4];
  const Number *queries = packed + (size_t)head * group * D;
#pragma unroll
  for (int kk = 0; kk < D / 16; kk++) {
    const Number *low = queries + (size_t)g * D + kk * 16 + 2 * t, *high = low + 8 * D;
    qa[kk][0] = g < group ? *(const uint32_t *)low : 0;
    qa[kk][1] = g + 8 < group ? *(const uint32_t *)high : 0;
    qa[kk][2] = g < group ? *(const uint32_t *)(low + 8) : 0;
    qa[kk][3] = g + 8 < group ? *(const uint32_t *)(high + 8) : 0;
  }
#pragma unroll
  for (int kk = 0; kk < D / 32; kk++)
#pragma unroll
    for (int right = 0; right < 2; right++) {
      float4 turn = *(const float4 *)(angles + kk * 16 + 8 * right + 2 * t);  // cos, sin of two columns
#pragma unroll
      for (int i = 2 * right; i < 2 * right + 2; i++) {
        float2 a = unpack(qa[kk][i]), b = unpack(qa[kk + D / 32][i]);
        qa[kk][i] = pack(a.x * turn.x - b.x * turn.y, a.y * turn.z - b.y * turn.w);
        qa[kk + D / 32][i] = pack(a.x * turn.y + b.x * turn.x, a.y * turn.w + b.y * turn.z);
      }
    }
  if (has_new) fresh.make(l, angles, c.n_kv, lane);
  float o[D / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
  int stage = 0, half = 0;
  auto next_half = [&](bool is_new, int which) {  // waits for it, asks for one more, and returns where it is
    copies_wait<STAGES - 2>();
    __syncwarp();
    fetch(half + STAGES - 1, (stage + STAGES - 1) % STAGES);
    uint32_t at = mine_at + stage * 2 * TILE;
    half++;
    stage = (stage + 1) % STAGES;
    if (is_new) {
      fresh.put(at, which, pos % 16, lane);
      __syncwarp();
    }
    return at;
  };
  for (int tile = tile0 + warp; tile < tile1; tile += WARPS) {
    uint32_t k_at = next_half(tile == tile_last, 0);
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
    uint32_t v_at = next_half(tile == tile_last, 1);
    uint32_t a[4] = {pack(sc[0][0], sc[0][1]), pack(sc[0][2], sc[0][3]), pack(sc[1][0], sc[1][1]),
                     pack(sc[1][2], sc[1][3])};
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
      uint32_t b[4];
      ldmatrix_trans(b, v_at + swizzled<D>(lane % 16, j + lane / 16));
      mma(o[j], a, b[0], b[1]);
      mma(o[j + 1], a, b[2], b[3]);
    }
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
    if (n_parts == 1) {
      out[line * D + i % D] = from_f32<Number>(sum / norm);
    } else {
      part_sum[(line * n_splits + split) * D + i % D] = sum;
      if (i % D == 0) part_norm[line * n_splits + split] = make_float2(m, norm);
    }
  }
  if (n_parts == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int *count = arrived + e * c.n_kv + head;
    is_last = atomicAdd(count, 1) == n_parts - 1;
    if (is_last) *count = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  float *factors = (float *)stages;  // [part][16]
  for (int r = warp; r < group; r += WARPS) {
    const float2 *norm = part_norm + ((size_t)e * n_q + head * group + r) * n_splits;
    float2 low = make_float2(-INFINITY, 0.f), high = low;
    if (lane < n_parts) low = __ldcg(norm + lane);
    if (lane + 32 < n_parts) high = __ldcg(norm + lane + 32);
    float m = warp_max(fmaxf(low.x, high.x));
    low.x = exp2f(low.x - m);
    high.x = exp2f(high.x - m);
    float whole = 1.f / warp_sum(low.x * low.y + high.x * high.y);
    if (lane < n_parts) factors[lane * 16 + r] = low.x * whole;
    if (lane + 32 < n_parts) factors[(lane + 32) * 16 + r] = high.x * whole;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * D / 4; i += blockDim.x) {
    int r = i / (D / 4);
    size_t line = (size_t)e * n_q + head * group + r;
    const float4 *from = (const float4 *)(part_sum + line * n_splits * D) + i % (D / 4);
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
    for (int part = 0; part < n_parts; part++) {
      float4 v = __ldcg(from + part * (D / 4));
      float f = factors[part * 16 + r];
      sum.x += v.x * f, sum.y += v.y * f, sum.z += v.z * f, sum.w += v.w * f;
    }
    ((uint2 *)(out + line * D))[i % (D / 4)] = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
  }
}
#define DECODE(D, STAGES)                                                                                            \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void attend_decode_##D(                                       \
      Step s, Cache c, ConvLayer l, Number *o, float *ps, float2 *pn, int *arrived, float scale) {                     \
    attend_decode<D, STAGES>(s, c, l, o, ps, pn, arrived, scale);                                                    \
  }
DECODE(64, 6)
DECODE(128, 4)
DECODE(256, 3)
