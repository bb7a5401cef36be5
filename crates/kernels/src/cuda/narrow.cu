// Products of a matrix with some tens of rows of activations, with Hopper's asynchronous tensor core instructions: the
// matrix's rows are the 64 rows of an instruction, activations its columns, so the tile is as narrow as the batch.
//
// The grid is as large as the GPU, and every block makes an equal share of the outputs, some tens of rows of the matrix at a
// time. One thread has the tensor memory unit fill a ring of shared memory, 256 bytes of every row a stage; a warpgroup
// multiplies. Stages are that long because each costs both of them some hundred cycles, whatever it holds.
//
// The matrix does not depend on the kernel before, so the ring is filled with it before waiting for that kernel.
#include "wgmma.cuh"

enum Mode { STORE = 0, STORE_F32 = 1, ADD_F32 = 2, SWIGLU = 3 };

// Shares begin at multiples of so many rows of the matrix: 1024 bytes of a panel.
constexpr int UNIT = 8;
constexpr int UNIT_BYTES = UNIT * 128;
// Panels of a stage, 128 bytes of every row each.
constexpr int PANELS = 2;
constexpr int MOST_STAGES = 16;

// Mirrors `Raw` in narrow.rs.
struct Narrow {
  void *y;  // [n_rows][n_out]
  // Where numbers have eight bits: what the matrix's rows and the activations' are multiplied by; null else.
  const float *matrix_factors, *x_factors;
  int n_out, n_in, n_rows;
  int n_passes;    // as many in every block
  int pass_units;  // most units in a pass; every pass has as many, or one less
  int stages;
};

// Whether this is the one thread of a whole warp that is to do something.
__device__ __forceinline__ bool elected() {
  uint32_t is;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(is));
  return is != 0;
}
// Fetches the box of the map at a panel and row: so many panels of the same rows, one after the other.
__device__ __forceinline__ void copy_panels(uint32_t to, const TensorMap *map, int panel, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(0), "r"(row), "r"(panel), "r"(barrier)
      : "memory");
}
// The same of what is read once: it leaves the L2 cache first.
__device__ __forceinline__ void copy_panels_stream(uint32_t to, const TensorMap *map, int panel, int row, uint32_t barrier,
                                                   uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], "
      "[%5], %6;" ::"r"(to),
      "l"(map), "r"(0), "r"(row), "r"(panel), "r"(barrier), "l"(policy)
      : "memory");
}

// d = a · bᵀ (accumulate: d +=): 64 rows, N rows, 32 bytes of each. Of the panels' descriptors only one half differs.
#define D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(d, i) D4(d, i), D4(d, i + 4), D4(d, i + 8), D4(d, i + 12)
#define R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define R32 R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R48 R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
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

// `most` and `less` map [matrix rows][n_in] in boxes of PANELS panels of pass_units units, and of one less; `x` [n_rows][n_in] in
// such of N rows.
template <class Numbers, int N, int TILES, int MODE>
__device__ __forceinline__ void narrow(const Narrow &p, const TensorMap *most, const TensorMap *less, const TensorMap *x) {
  // Of SWIGLU one half of the tiles is gates, the other their ups; sums to add to are held in registers while the product is made.
  constexpr int MATRICES = MODE == SWIGLU ? 2 : 1, OUTPUT_TILES = TILES / MATRICES, X_BYTES = N * 128;
  static_assert(TILES % MATRICES == 0 && (MODE != ADD_F32 || TILES == 1));
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2][MOST_STAGES];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int n_units = (p.n_out + UNIT - 1) / UNIT;
  int first_unit = (int)((long long)n_units * blockIdx.x / gridDim.x);
  int share = (int)((long long)n_units * (blockIdx.x + 1) / gridDim.x) - first_unit;
  auto pass_begin = [&](int pass) { return share * pass / p.n_passes; };
  // Units that are fetched for a pass: at least one, and be it for nothing.
  auto fetched = [&](int pass) { return max(pass_begin(pass + 1) - pass_begin(pass), 1); };
  int n_chunks = (p.n_in + Numbers::K * PANELS - 1) / (Numbers::K * PANELS);

  // Stages: panels of the matrix (of the gates', of the ups'), then panels of activations. An instruction may read beyond
  // the rows that were fetched: what it makes of them nobody looks at.
  uint32_t ring = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
  uint32_t x_at = MATRICES * PANELS * p.pass_units * UNIT_BYTES, stage_bytes = x_at + PANELS * X_BYTES;
  uint32_t full = (uint32_t)__cvta_generic_to_shared(barriers[0]), empty = (uint32_t)__cvta_generic_to_shared(barriers[1]);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < p.stages; stage++) {
      barrier_init(full + stage * 8, 1);
      barrier_init(empty + stage * 8, 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (warp == 4) {  // fetches
    if (!elected()) return;
    uint64_t policy = streaming_policy();
    auto fetch_matrix = [&](int pass, int chunk, int stage) {
      uint32_t to = ring + stage * stage_bytes, barrier = full + stage * 8;
      int row = (first_unit + pass_begin(pass)) * UNIT, units = fetched(pass), bytes = PANELS * units * UNIT_BYTES;
      barrier_expect(barrier, MATRICES * bytes + PANELS * X_BYTES);
#pragma unroll
      for (int m = 0; m < MATRICES; m++)
        copy_panels_stream(to + m * bytes, units == p.pass_units ? most : less, chunk * PANELS, row + m * p.n_out, barrier, policy);
    };
    auto fetch_x = [&](int chunk, int stage) {
      copy_panels(ring + stage * stage_bytes + x_at, x, chunk * PANELS, 0, full + stage * 8);
    };
    int total = p.n_passes * n_chunks, ahead = min(p.stages, total);
    for (int i = 0; i < ahead; i++) fetch_matrix(i / n_chunks, i % n_chunks, i);
    wait_previous();
    for (int i = 0; i < ahead; i++) fetch_x(i % n_chunks, i);
    int pass = ahead / n_chunks, chunk = ahead % n_chunks, stage = 0, parity = 0;
    for (int i = ahead; i < total; i++) {
      barrier_wait(empty + stage * 8, parity);
      fetch_matrix(pass, chunk, stage);
      fetch_x(chunk, stage);
      if (++chunk == n_chunks) chunk = 0, pass++;
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
  } else {  // multiplies
    wait_previous();
    allow_next();  // sooner, its blocks would come between these and the ones before
    int g = lane / 4, t = lane % 4;
    // Of a tile's numbers in this thread: the output, counted from the tile's first, and the row of activations.
    auto output_of = [&](int i) { return warp * 16 + g + 8 * (i / 2 & 1); };
    auto row_of = [&](int i) { return i / 4 * 8 + 2 * t + (i & 1); };
    auto release = [&](int stage) {
      if (lane == 0) barrier_arrive(empty + stage * 8);
    };
    // Of a descriptor the half that differs; addresses in it count 16 bytes.
    uint32_t base = (uint32_t)panel_descriptor(ring, 16);
    float acc[TILES][N / 2];
    float old[MODE == ADD_F32 ? N / 2 : 1];
    int stage = 0, parity = 0;
    for (int pass = 0; pass < p.n_passes; pass++) {
      int first = (first_unit + pass_begin(pass)) * UNIT;
      int n = min((pass_begin(pass + 1) - pass_begin(pass)) * UNIT, p.n_out - first);  // outputs of the pass
      if constexpr (MODE == ADD_F32) {
#pragma unroll
        for (int i = 0; i < N / 2; i++)
          old[i] = output_of(i) < n && row_of(i) < p.n_rows ? ((float *)p.y)[(size_t)row_of(i) * p.n_out + first + output_of(i)] : 0.f;
      }
      uint32_t panel_bytes = fetched(pass) * UNIT_BYTES;
      int before = -1;
      for (int chunk = 0; chunk < n_chunks; chunk++) {
        barrier_wait(full + stage * 8, parity);
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
            if (tile * 64 + output_of(2 * r) < n) factor[r] = p.matrix_factors[first + tile * 64 + output_of(2 * r)];
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
          int out = tile * 64 + output_of(i), row = row_of(i);
          if (out >= n || row >= p.n_rows) continue;
          size_t at = (size_t)row * p.n_out + first + out;
          float v = acc[tile][i];
          if constexpr (Numbers::SCALED) v *= factor[i / 2 & 1] * p.x_factors[row];
          if constexpr (MODE == SWIGLU) v = v / (1.f + __expf(-v)) * acc[tile + OUTPUT_TILES][i];
          if constexpr (MODE == ADD_F32) v += old[i];
          if constexpr (MODE == STORE || MODE == SWIGLU)
            ((Number *)p.y)[at] = from_f32<Number>(v);
          else
            ((float *)p.y)[at] = v;
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
