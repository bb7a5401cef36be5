// Products of a matrix of sixteen bits, or of floats of eight, with some tens of rows of activations (narrow.cuh): both are
// multiplied as they lie in shared memory.
//
// Stages are 256 bytes of every row because each costs the thread that fetches and the warpgroup some hundred cycles, whatever it
// holds.
#include "narrow.cuh"

// Panels of a stage, 128 bytes of every row each; of a unit.
[[maybe_unused]] constexpr int PANELS = 2;
[[maybe_unused]] constexpr int UNIT_BYTES = UNIT * 128;

// d = a · bᵀ (accumulate: d +=): 64 rows, N rows, 32 bytes of each. Of the panels' descriptors only one half differs.
#define MULTIPLY(N, INSTRUCTION, HALF, REGISTERS, A, B, P, ORDERS, ...)                                                  \
  static __device__ __forceinline__ void multiply(float (&d)[HALF], uint32_t a, uint32_t b, bool accumulate) {           \
    asm volatile("{.reg .pred p; .reg .b64 a, b; setp.ne.b32 p, %" P ", 0;\n"                                            \
                 "mov.b64 a, {%" A ", 0x40000040}; mov.b64 b, {%" B ", 0x40000040};\n"                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #N INSTRUCTION " {" REGISTERS "}, a, b, p, 1, 1" ORDERS ";}"        \
                 : __VA_ARGS__                                                                                           \
                 : "r"(a), "r"(b), "r"((int)accumulate));                                                                \
  }
#define MULTIPLY_ALL(INSTRUCTION, ORDERS)                                                                               \
  MULTIPLY(32, INSTRUCTION, 16, R16, "16", "17", "18", ORDERS, D16(d, 0))                                               \
  MULTIPLY(64, INSTRUCTION, 32, R32, "32", "33", "34", ORDERS, D16(d, 0), D16(d, 16))                                   \
  MULTIPLY(96, INSTRUCTION, 48, R48, "48", "49", "50", ORDERS, D16(d, 0), D16(d, 16), D16(d, 32))

struct Halves {
  static constexpr int K = 64;  // numbers in 128 bytes
  static constexpr bool SCALED = false;
  MULTIPLY_ALL("k16.f32." NUMBER_NAME "." NUMBER_NAME, ", 0, 0")
};
// Floats of eight bits (E4M3), with factors.
struct Eighths {
  static constexpr int K = 128;
  static constexpr bool SCALED = true;
  MULTIPLY_ALL("k32.f32.e4m3.e4m3", "")
};

// Of a tile's numbers in a thread of the warpgroup: the output, counted from the tile's first.
__device__ __forceinline__ int output_of(int i) { return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + 8 * (i / 2 & 1); }
// What the results of a tile are added to: of `n` outputs from `first` on.
template <int N> __device__ __forceinline__ void fetch_old(float (&old)[N / 2], const Narrow &p, int first, int n) {
#pragma unroll
  for (int i = 0; i < N / 2; i++)
    old[i] = output_of(i) < n && row_of(i) < p.n_rows ? ((float *)p.y)[(size_t)row_of(i) * p.n_out + first + output_of(i)] : 0.f;
}

// `most` and `less` map [matrix rows][n_in] in boxes of PANELS panels of pass_units units, and of one less; `x` [n_rows][n_in] in
// such of N rows.
template <class Numbers, int N, int TILES, int MODE>
__device__ __forceinline__ void narrow(const Narrow &p, const TensorMap *most, const TensorMap *less, const TensorMap *x) {
  // Of SWIGLU one half of the tiles is gates, the other their ups; sums to add to are held in registers while the product is made.
  constexpr int MATRICES = MODE == SWIGLU ? 2 : 1, OUTPUT_TILES = TILES / MATRICES, X_BYTES = N * 128;
  static_assert(TILES % MATRICES == 0 && (MODE != ADD_F32 || TILES == 1));
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2][MOST_STAGES];
  int warp = warp_of_block(), lane = threadIdx.x % 32;
  if (threadIdx.x == 32) prefetch_map(most), prefetch_map(less), prefetch_map(x);
  Share share(p, blockIdx.x, gridDim.x);
  int n_chunks = (p.n_in + Numbers::K * PANELS - 1) / (Numbers::K * PANELS);

  // Stages: panels of the matrix (of the gates', of the ups'), then panels of activations. An instruction may read beyond
  // the rows that were fetched: what it makes of them nobody looks at.
  uint32_t ring = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
  uint32_t x_at = MATRICES * PANELS * p.pass_units * UNIT_BYTES, stage_bytes = x_at + PANELS * X_BYTES;
  Ring turns(barriers, p.stages, 4);

  if (warp == 4) {  // fetches
    if (!elected()) return;
    uint64_t policy = streaming_policy();
    auto fetch_matrix = [&](int pass, int chunk, int stage) {
      uint32_t to = ring + stage * stage_bytes, full = turns.full + stage * 8;
      int row = share.row(pass), units = share.fetched(pass), bytes = PANELS * units * UNIT_BYTES;
      barrier_expect(full, MATRICES * bytes + PANELS * X_BYTES);
#pragma unroll
      for (int m = 0; m < MATRICES; m++)
        copy_panels_stream(to + m * bytes, units == p.pass_units ? most : less, chunk * PANELS, row + m * p.n_out, full, policy);
    };
    auto fetch_x = [&](int chunk, int stage) {
      copy_panels(ring + stage * stage_bytes + x_at, x, chunk * PANELS, 0, turns.full + stage * 8);
    };
    turns.fill(p, 0, n_chunks, fetch_matrix, fetch_x);
  } else {  // multiplies
    wait_previous();
    allow_next();  // sooner, its blocks would come between these and the ones before
    auto release = [&](int stage) {
      if (lane == 0) barrier_arrive(turns.empty + stage * 8);
    };
    // Of a descriptor the half that differs; addresses in it count 16 bytes.
    uint32_t base = (uint32_t)panel_descriptor(ring, 16);
    float acc[TILES][N / 2];
    float old[MODE == ADD_F32 ? N / 2 : 1];
    int stage = 0, parity = 0;
    for (int pass = 0; pass < p.n_passes; pass++) {
      int first = share.row(pass), n = share.outputs(pass, p);
      if constexpr (MODE == ADD_F32) fetch_old<N>(old, p, first, n);
      uint32_t panel_bytes = share.fetched(pass) * UNIT_BYTES;
      int before = -1;
      for (int chunk = 0; chunk < n_chunks; chunk++) {
        barrier_wait(turns.full + stage * 8, parity);
        uint32_t a = base + (stage * stage_bytes >> 4), b = a + (x_at >> 4);
        wgmma_begin();
#pragma unroll
        for (int kk = 0; kk < 4 * PANELS; kk++)
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) {
            int at = kk % 4 * 32 + tile % OUTPUT_TILES * 64 * 128;
            uint32_t panel = (kk / 4 + tile / OUTPUT_TILES * PANELS) * panel_bytes;
            Numbers::multiply(acc[tile], a + (panel + at >> 4), b + (kk / 4 * X_BYTES + kk % 4 * 32 >> 4), chunk > 0 || kk > 0);
          }
        wgmma_commit();
        wgmma_wait<1>();
        if (before >= 0) release(before);
        before = stage;
        if (++stage == p.stages) stage = 0, parity ^= 1;
      }
      wgmma_wait<0>();
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) hold(acc[tile]);
      release(before);
#pragma unroll
      for (int tile = 0; tile < OUTPUT_TILES; tile++) {
        float factor[2] = {1.f, 1.f};
        if constexpr (Numbers::SCALED) {
#pragma unroll
          for (int r = 0; r < 2; r++)
            if (tile * 64 + output_of(2 * r) < n) factor[r] = ((const float *)p.matrix_factors)[first + tile * 64 + output_of(2 * r)];
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
          int out = tile * 64 + output_of(i), row = row_of(i);
          if (out >= n || row >= p.n_rows) continue;
          float v = acc[tile][i];
          if constexpr (Numbers::SCALED) v *= factor[i / 2 & 1] * p.x_factors[row];
          if constexpr (MODE == SWIGLU) v = silu(v) * acc[tile + OUTPUT_TILES][i];
          if constexpr (MODE == ADD_F32) v += old[i];
          put<MODE>(p, row, first + out, v);
        }
      }
    }
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define NARROW(NAME, NUMBERS, N, TILES, MODE)                                                           \
  extern "C" __global__ __launch_bounds__(160, 1) void NAME##_##N(const __grid_constant__ Narrow p,     \
                                                                  const __grid_constant__ TensorMap most,   \
                                                                  const __grid_constant__ TensorMap less,   \
                                                                  const __grid_constant__ TensorMap x) {    \
    narrow<NUMBERS, N, TILES, MODE>(p, &most, &less, &x);                                               \
  }
// As many tiles as narrow.rs says.
#define NARROW_ALL(N)                                        \
  NARROW(narrow_store, Halves, N, 1, STORE)                  \
  NARROW(narrow_store_f32, Halves, N, 2, STORE_F32)          \
  NARROW(narrow_add, Halves, N, 1, ADD_F32)                  \
  NARROW(narrow_swiglu, Halves, N, 2, SWIGLU)              \
  NARROW(narrow_eighths_store, Eighths, N, 2, STORE)         \
  NARROW(narrow_eighths_store_f32, Eighths, N, 2, STORE_F32) \
  NARROW(narrow_eighths_add, Eighths, N, 1, ADD_F32)
NARROW_ALL(32)
NARROW_ALL(64)
NARROW_ALL(96)
#endif
