// Products of a bf16 matrix with 1 to 16 rows of activations: as fast as the matrix can be read.
//
// A block makes TILES · 16 outputs; its eight warps share the sum over the inputs. The tensor core's 16×8×16
// product fits: 16 outputs, 8 rows. A lane reads 8 consecutive inputs of a matrix row at once and of an activation
// row likewise, so the order of the inputs within a step of 32 is permuted alike on both sides; a sum does not
// care. Weights do not depend on the kernel before, so their first loads are issued before waiting for it.
#include "mma.cuh"

enum Mode { STORE = 0, STORE_F32 = 1, ADD_F32 = 2, SWIGLU = 3 };

__device__ __forceinline__ uint4 stream16(const void *p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// matrix: [n_out][n_in], n_in a multiple of 32 (SWIGLU: [2 · n_out][n_in], gates before ups).
// x: [n_rows][n_in]; y: [n_rows][n_out].
template <int TILES, int COLUMNS, int UNROLL, int MODE>
__device__ void gemv(const bf16 *matrix, const bf16 *x, void *y, int n_out, int n_in, int n_rows) {
  constexpr int WARPS = 8;
  __shared__ float partial[WARPS][TILES * COLUMNS][128];
  allow_next();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int out0 = blockIdx.x * (MODE == SWIGLU ? 16 * TILES / 2 : 16 * TILES);
  const bf16 *rows[TILES][2];
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      int half = MODE == SWIGLU ? m % 2 : 0, tile = MODE == SWIGLU ? m / 2 : m;
      int out = min(out0 + tile * 16 + g + 8 * r, n_out - 1) + half * n_out;
      rows[m][r] = matrix + (size_t)out * n_in + 8 * t;
    }
  int n_steps = n_in / 32;
  float acc[TILES][COLUMNS][4] = {};
  uint4 w[UNROLL][TILES][2];
  auto load = [&](int step) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      int at = step + u * WARPS;
#pragma unroll
      for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          w[u][m][r] = at < n_steps ? stream16(rows[m][r] + at * 32) : make_uint4(0, 0, 0, 0);
    }
  };
  load(warp);
  wait_previous();
  for (int step = warp; step < n_steps; step += UNROLL * WARPS) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      int at = step + u * WARPS;
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        int row = c * 8 + g;
        uint4 b = make_uint4(0, 0, 0, 0);
        if (row < n_rows && at < n_steps) b = *(const uint4 *)(x + (size_t)row * n_in + at * 32 + 8 * t);
#pragma unroll
        for (int m = 0; m < TILES; m++) {
          uint32_t first[4] = {w[u][m][0].x, w[u][m][1].x, w[u][m][0].y, w[u][m][1].y};
          uint32_t second[4] = {w[u][m][0].z, w[u][m][1].z, w[u][m][0].w, w[u][m][1].w};
          mma(acc[m][c], first, b.x, b.y);
          mma(acc[m][c], second, b.z, b.w);
        }
      }
    }
    if (step + UNROLL * WARPS < n_steps) load(step + UNROLL * WARPS);
  }
#pragma unroll
  for (int m = 0; m < TILES; m++)
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      float *to = partial[warp][m * COLUMNS + c];
      // [row of activations][output of the tile]
      to[(2 * t) * 16 + g] = acc[m][c][0];
      to[(2 * t + 1) * 16 + g] = acc[m][c][1];
      to[(2 * t) * 16 + g + 8] = acc[m][c][2];
      to[(2 * t + 1) * 16 + g + 8] = acc[m][c][3];
    }
  __syncthreads();
  auto sum = [&](int m, int c, int i) {
    float v = 0.f;
#pragma unroll
    for (int k = 0; k < WARPS; k++) v += partial[k][m * COLUMNS + c][i];
    return v;
  };
  constexpr int OUT_TILES = MODE == SWIGLU ? TILES / 2 : TILES;
  for (int i = threadIdx.x; i < OUT_TILES * COLUMNS * 128; i += WARPS * 32) {
    int tile = i / (COLUMNS * 128), c = i / 128 % COLUMNS, row = c * 8 + i % 128 / 16;
    int out = out0 + tile * 16 + i % 16;
    if (row >= n_rows || out >= n_out) continue;
    size_t at = (size_t)row * n_out + out;
    if (MODE == SWIGLU) {
      float gate = sum(2 * tile, c, i % 128), up = sum(2 * tile + 1, c, i % 128);
      ((bf16 *)y)[at] = __float2bfloat16_rn(gate / (1.f + __expf(-gate)) * up);
    } else {
      float v = sum(tile, c, i % 128);
      if (MODE == STORE) ((bf16 *)y)[at] = __float2bfloat16_rn(v);
      if (MODE == STORE_F32) ((float *)y)[at] = v;
      if (MODE == ADD_F32) ((float *)y)[at] += v;
    }
  }
}
#define GEMV(NAME, TILES, MODE)                                                                                      \
  extern "C" __global__ __launch_bounds__(256) void gemv_##NAME##_8(const bf16 *m, const bf16 *x, void *y, int o,    \
                                                                    int i, int n) {                                 \
    gemv<TILES, 1, TILES == 1 ? 5 : 3, MODE>(m, x, y, o, i, n);                                                      \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(256) void gemv_##NAME##_16(const bf16 *m, const bf16 *x, void *y, int o,   \
                                                                     int i, int n) {                                \
    gemv<TILES, 2, TILES == 1 ? 5 : 3, MODE>(m, x, y, o, i, n);                                                      \
  }
GEMV(store, 1, STORE)
GEMV(store_f32, 2, STORE_F32)
GEMV(add, 1, ADD_F32)
GEMV(swiglu, 2, SWIGLU)
