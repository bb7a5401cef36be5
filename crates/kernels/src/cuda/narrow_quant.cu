// Products of a quantised matrix with some tens of rows of activations (narrow.cuh). How codes lie, gemv_quant.cu says: what
// ldmatrix hands to a lane are its weights of an instruction whose matrix is in registers.
//
// Codes become numbers of the activations' type, scales and minima too, and their product is rounded to it: the weights are those
// that `dequantize` writes out, up to another rounding. Each warpgroup has 64 rows of the matrix to itself, of a pass of as many as
// three have; half of a stage's codes become numbers while the tensor cores multiply the other half's. With many rows it is the way of
// the activations from the L2 cache that bounds a product: blocks of a cluster then share outputs and split inputs (cluster.cuh).
#include <type_traits>

#include "cluster.cuh"
#include "codes.cuh"
#include "numbers.cuh"
#include "narrow.cuh"

// Inputs of a stage: a chunk of the formats, two panels of activations.
[[maybe_unused]] constexpr int K = 128;
[[maybe_unused]] constexpr int MOST_GROUPS = 3;

__device__ __forceinline__ uint32_t shared_word(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
  return v;
}
__device__ __forceinline__ uint2 shared_words(uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
  return v;
}
// Sixteen inputs each, of half a chunk: weights of a warp's sixteen rows.
using Weights = uint32_t[4][4];

// Where, from a stage's first row on, lie the codes that a lane asks ldmatrix for, and what is beside the two rows whose weights it is
// given. A warp's sixteen are sixteen outputs' or, of SWIGLU, eight gates and their ups, which lie behind all `n` gates that were
// fetched. Instead of what was not fetched, the last row.
struct Rows {
  uint32_t codes, low, high;
  template <class Format, int MATRICES> static __device__ __forceinline__ Rows of(int n) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    auto row = [&](int i) {
      if constexpr (MATRICES == 2) return min(warp * 8 + i % 8, n - 1) + i / 8 * n;
      return min(warp * 16 + i, n - 1);
    };
    // Pieces of 16 bytes are swizzled within a row: of every pair, lanes from 16 on ask for the second.
    int asked = row(lane % 16), swizzle = Format::ROW_BYTES == 128 ? asked & 7 : asked / 2 & 3;
    Rows rows = {(uint32_t)(asked * Format::ROW_BYTES + (lane / 16 ^ swizzle) * 16), (uint32_t)row(lane / 4) * Format::BESIDE_BYTES,
                 (uint32_t)row(lane / 4 + 8) * Format::BESIDE_BYTES};
    asm volatile("" : "+r"(rows.codes), "+r"(rows.low), "+r"(rows.high));  // in registers, not worked out again
    return rows;
  }
};

// What a lane is given of half a chunk, and the weights that it makes of that; `rows` are addresses.
struct Bytes {
  static constexpr int ROW_BYTES = 128, BESIDE_BYTES = 8;
  uint32_t codes[2][4], low, high;
  __device__ __forceinline__ void fetch(const Rows &rows, int half) {
#pragma unroll
    for (int block = 0; block < 2; block++) ldmatrix(codes[block], rows.codes ^ (half * 4 + block * 2) * 16);
    low = shared_word(rows.low + half * 4), high = shared_word(rows.high + half * 4);
  }
  __device__ __forceinline__ void weights(Weights &a) const {
#pragma unroll
    for (int block = 0; block < 2; block++) {
      Scale s = scale_of<128>(low, block), t = scale_of<128>(high, block);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t(&of)[4] = a[2 * block + i];
        weights_of_bytes(codes[block][2 * i], s, of[0], of[2]);
        weights_of_bytes(codes[block][2 * i + 1], t, of[1], of[3]);
      }
    }
  }
};

struct Nibbles {
  static constexpr int ROW_BYTES = 64, BESIDE_BYTES = 16;
  uint32_t codes[4];
  uint2 low, high;
  __device__ __forceinline__ void fetch(const Rows &rows, int half) {
    ldmatrix(codes, rows.codes ^ half * 32);
    low = shared_words(rows.low + half * 8), high = shared_words(rows.high + half * 8);
  }
  __device__ __forceinline__ void weights(Weights &a) const {
#pragma unroll
    for (int block = 0; block < 2; block++) {
      Scale s = scale_and_minimum(block ? low.y : low.x), t = scale_and_minimum(block ? high.y : high.x);
      uint32_t(&of)[4] = a[2 * block], (&then)[4] = a[2 * block + 1];
      weights_of_nibbles(codes[2 * block], s, of[0], of[2], then[0], then[2]);
      weights_of_nibbles(codes[2 * block + 1], t, of[1], of[3], then[1], then[3]);
    }
  }
};

struct Sixes {
  static constexpr int ROW_BYTES = 64, BESIDE_BYTES = SIXES_BESIDE;
  uint32_t codes[4], upper[2];
  uint2 scales[2];
  __device__ __forceinline__ void fetch(const Rows &rows, int half) {
    ldmatrix(codes, rows.codes ^ half * 32);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint32_t of_row = r ? rows.high : rows.low;
      upper[r] = shared_word(of_row + half * 16 + threadIdx.x % 4 * 4);
      scales[r] = shared_words(of_row + SIXES_SCALES + half * 8);
    }
  }
  __device__ __forceinline__ void weights(Weights &a) const {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int block = 0; block < 2; block++) {
        uint32_t v = codes[2 * block + r], u = block ? upper[r] >> 4 : upper[r] << 4;  // the block's first input to bit 4
        uint32_t two = block ? scales[r].y : scales[r].x;
        Scale s = scale_of<32>(two, 0), z = scale_of<32>(two, 1);
        a[2 * block][r] = weights_of_sixes(v, u, s);
        a[2 * block][r + 2] = weights_of_sixes(v >> 4, u >> 2, s);
        a[2 * block + 1][r] = weights_of_sixes(v >> 8, u >> 4, z);
        a[2 * block + 1][r + 2] = weights_of_sixes(v >> 12, u >> 6, z);
      }
  }
};

// d += a · bᵀ: 64 rows in registers, N rows of a panel, 16 inputs of each.
#define MULTIPLY(N, HALF, REGISTERS, A0, A1, A2, A3, B, ...)                                                             \
  __device__ __forceinline__ void multiply(float (&d)[HALF], const uint32_t (&a)[4], uint32_t b) {                       \
    asm volatile("{.reg .b64 b; mov.b64 b, {%" B ", 0x40000040};\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NUMBER_NAME "." NUMBER_NAME " {" REGISTERS "}, "      \
                 "{%" A0 ", %" A1 ", %" A2 ", %" A3 "}, b, 1, 1, 1, 0;}"                                                 \
                 : __VA_ARGS__                                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));                                                  \
  }
MULTIPLY(32, 16, R16, "16", "17", "18", "19", "20", D16(d, 0))
MULTIPLY(64, 32, R32, "32", "33", "34", "35", "36", D16(d, 0), D16(d, 16))
MULTIPLY(128, 64, R64, "64", "65", "66", "67", "68", D16(d, 0), D16(d, 16), D16(d, 32), D16(d, 48))

// Bytes, a multiple of 16, that are read once.
__device__ __forceinline__ void copy_bytes_stream(uint32_t to, const void *from, int bytes, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
// `most` and `less` map the codes, [matrix rows][n_in], in boxes of a chunk of pass_units units, and of one less; `x` [n_rows][n_in]
// in boxes of two panels of N rows. Rows of the matrix are even in number.
template <class Format, int N, int MODE>
__device__ __forceinline__ void narrow(const Narrow &p, const TensorMap *most, const TensorMap *less, const TensorMap *x) {
  constexpr int MATRICES = MODE == SWIGLU ? 2 : 1, PANEL_BYTES = N * 128, X_BYTES = 2 * PANEL_BYTES;
  constexpr int ROW_BYTES = Format::ROW_BYTES, BESIDE_BYTES = Format::BESIDE_BYTES;
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2][MOST_STAGES], exchange_barriers[2];
  int warp = warp_of_block(), lane = threadIdx.x % 32, n_groups = blockDim.x / 128;
  if (threadIdx.x == 32) prefetch_map(most), prefetch_map(less), prefetch_map(x);
  Split split;
  Share share(p, blockIdx.x / split.n, gridDim.x / split.n);
  int n_chunks = p.n_in / K, begin = split.begin(n_chunks), end = split.end(n_chunks), matrix_rows = MATRICES * p.n_out;

  // Stages: panels of activations, then codes (of the gates, of the ups), then what lies beside them.
  uint32_t ring = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
  uint32_t beside_at = X_BYTES + MATRICES * p.pass_units * UNIT * ROW_BYTES;
  uint32_t stage_bytes = beside_at + MATRICES * p.pass_units * UNIT * BESIDE_BYTES + 1023 & ~1023u;
  Exchange exchange(exchange_barriers, split, ring + p.inbox, n_groups, n_groups * 4);
  Ring turns(barriers, p.stages, n_groups * 4);
  if (split.n > 1) cluster_arrive();

  if (warp == n_groups * 4) {  // fetches
    if (!elected()) return;
    uint64_t policy = streaming_policy();
    auto fetch_matrix = [&](int pass, int chunk, int stage) {
      uint32_t to = ring + stage * stage_bytes, full = turns.full + stage * 8;
      int units = share.fetched(pass), rows = units * UNIT, begin = share.row(pass), beside_rows[MATRICES], all = 0;
#pragma unroll
      for (int m = 0; m < MATRICES; m++) all += beside_rows[m] = min(rows, matrix_rows - begin - m * p.n_out);
      barrier_expect(full, MATRICES * rows * ROW_BYTES + all * BESIDE_BYTES + X_BYTES);
#pragma unroll
      for (int m = 0; m < MATRICES; m++) {
        int row = begin + m * p.n_out;
        copy_panels_stream(to + X_BYTES + m * rows * ROW_BYTES, units == p.pass_units ? most : less, chunk, row, full, policy);
        copy_bytes_stream(to + beside_at + m * rows * BESIDE_BYTES,
                          (const char *)p.matrix_factors + ((size_t)chunk * matrix_rows + row) * BESIDE_BYTES,
                          beside_rows[m] * BESIDE_BYTES, full, policy);
      }
    };
    auto fetch_x = [&](int chunk, int stage) { copy_panels(ring + stage * stage_bytes, x, chunk * 2, 0, turns.full + stage * 8); };
    turns.fill(p, begin, end, fetch_matrix, fetch_x);
  } else {  // multiplies
    wait_previous();
    allow_next();  // sooner, its blocks would come between these and the ones before
    if (split.n > 1) cluster_wait();
    auto release = [&](int stage) {
      if (lane == 0) barrier_arrive(turns.empty + stage * 8);
    };
    // Of a thread's sums the first output; two further on are those of one eight later or, of SWIGLU, its up's.
    int group = warp / 4, output = MATRICES == 2 ? warp * 8 + lane / 4 : warp * 16 + lane / 4;
    uint32_t base = (uint32_t)panel_descriptor(ring, 16);
    int stage = 0, parity = 0;
    for (int pass = 0; pass < p.n_passes; pass++) {
      int first = share.row(pass), n = share.outputs(pass, p), n_fetched = share.fetched(pass) * UNIT;
      Rows rows = Rows::of<Format, MATRICES>(n_fetched);
      // A warp of rows that were not fetched makes no numbers of codes.
      bool any = warp * 16 / MATRICES < n_fetched;
      Weights a[2] = {};
      float acc[N / 2] = {};
      Format given[2];
      // Of a stage that is full, to registers.
      auto fetch = [&](int half) {
        uint32_t at = ring + stage * stage_bytes;
        Rows here = {at + X_BYTES + rows.codes, at + beside_at + rows.low, at + beside_at + rows.high};
        if (any) given[half].fetch(here, half);
      };
      auto multiply_half = [&](int half, uint32_t b) {
        if (any) given[half].weights(a[half]);
        wgmma_begin();
#pragma unroll
        for (int kk = 0; kk < 4; kk++) multiply(acc, a[half][kk], b + (half * PANEL_BYTES + kk * 32 >> 4));
        wgmma_commit();
        wgmma_wait<1>();
      };
      int before = -1;
      barrier_wait(turns.full + stage * 8, parity);
      fetch(0);
      for (int chunk = begin; chunk < end; chunk++) {
        uint32_t b = base + (stage * stage_bytes >> 4);
        fetch(1);
        multiply_half(0, b);
        if (before >= 0) release(before);
        before = stage;
        if (++stage == p.stages) stage = 0, parity ^= 1;
        if (chunk + 1 < end) {
          barrier_wait(turns.full + stage * 8, parity);
          fetch(0);
        }
        multiply_half(1, b);
      }
      wgmma_wait<0>();
      hold(acc);
      release(before);
      auto finish = [&](auto n_splits) {
        constexpr int SPLITS = decltype(n_splits)::value, SUMS = N / 2 / SPLITS;
        // Of a thread's sums, those that are a result's; of SWIGLU every other two are ups.
        auto each = [&](auto &&f) {
#pragma unroll
          for (int i = 0; i < SUMS; i++) {
            int out = output + (MATRICES == 2 ? 0 : i / 2 % 2 * 8), row = exchange.group_of<SPLITS>(i / 4) * 8 + lane % 4 * 2 + i % 2;
            if ((MATRICES == 1 || i / 2 % 2 == 0) && out < n && row < p.n_rows) f(i, row, first + out);
          }
        };
        auto old = [&](int row, int out) { return ((const float *)p.y)[(size_t)row * p.n_out + out]; };
        auto finished = [&](const float *sums, int i) {
          float v = sums[i] * (1.f / WEIGHT_FACTOR);
          if constexpr (MODE == SWIGLU) v = silu(v) * sums[i + 2] * (1.f / WEIGHT_FACTOR);
          return v;
        };
        if constexpr (SPLITS == 1) {
          each([&](int i, int row, int out) { put<MODE>(p, row, out, finished(acc, i) + (MODE == ADD_F32 ? old(row, out) : 0.f)); });
        } else {
          // What sums are added to is fetched while they are on their way.
          float sums[SUMS], added[SUMS] = {};
          exchange.send<SPLITS>(acc, group, pass);
          if constexpr (MODE == ADD_F32) each([&](int i, int row, int out) { added[i] = old(row, out); });
          exchange.receive<SPLITS>(sums, acc, group, pass);
          each([&](int i, int row, int out) { put<MODE>(p, row, out, finished(sums, i) + added[i]); });
        }
      };
      if (split.n == 1)
        finish(std::integral_constant<int, 1>());
      else if (split.n == 2)
        finish(std::integral_constant<int, 2>());
      else
        finish(std::integral_constant<int, 4>());
    }
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define NARROW(NAME, FORMAT, N, MODE)                                                                         \
  extern "C" __global__ __launch_bounds__((MOST_GROUPS * 4 + 1) * 32, 1) void NAME##_##N(                     \
      const __grid_constant__ Narrow p, const __grid_constant__ TensorMap most,                               \
      const __grid_constant__ TensorMap less, const __grid_constant__ TensorMap x) {                          \
    narrow<FORMAT, N, MODE>(p, &most, &less, &x);                                                             \
  }
#define NARROW_ALL(NAME, FORMAT, N)                        \
  NARROW(narrow_##NAME##_store, FORMAT, N, STORE)          \
  NARROW(narrow_##NAME##_store_f32, FORMAT, N, STORE_F32)  \
  NARROW(narrow_##NAME##_add, FORMAT, N, ADD_F32)          \
  NARROW(narrow_##NAME##_swiglu, FORMAT, N, SWIGLU)
#define NARROW_FORMATS(N)            \
  NARROW_ALL(bytes, Bytes, N)        \
  NARROW_ALL(nibbles, Nibbles, N)    \
  NARROW_ALL(sixes, Sixes, N)
NARROW_FORMATS(32)
NARROW_FORMATS(64)
NARROW_FORMATS(128)
#endif
