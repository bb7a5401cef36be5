// Products of a quantised matrix with some tens of rows of activations (narrow.cuh). How codes lie, gemv_quant.cu says: what
// ldmatrix hands to a lane are its weights of an instruction whose matrix is in registers.
//
// Codes become numbers of the activations' type, scales and minima too, and their product is rounded to it: the weights are those
// that `dequantize` writes out, up to another rounding. Warpgroups take stages of 128 inputs by turns, so that some turn codes into
// numbers while the tensor cores multiply the others'; their sums are joined at the end of a pass.
#include "codes.cuh"
#include "numbers.cuh"
#include "narrow.cuh"

// Inputs of a stage: a chunk of the formats, two panels of activations.
constexpr int K = 128;
// Warpgroups, by the tile: as many as registers suffice for.
template <int N> constexpr int GROUPS = N == 32 ? 4 : 2;

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
// The upper or the lower of two numbers of f16, twice, in the activations' type.
__device__ __forceinline__ uint32_t twice(int upper, uint32_t two) {
#if defined(NUMBER_BF16)
  float v = __half2float(__ushort_as_half((unsigned short)(upper ? two >> 16 : two)));
  return pack(v, v);
#else
  return __byte_perm(two, two, upper ? 0x3232 : 0x1010);
#endif
}

// Sixteen inputs each: weights of a warp's sixteen rows.
using Weights = uint32_t[K / 16][4];

// Rows of a tile, of which `n` were fetched, whose codes a lane asks ldmatrix for, and those whose weights it is given. Instead of what
// was not fetched, the last row.
struct Rows {
  int asked, low, high;
  __device__ __forceinline__ explicit Rows(int n) {
    int first = threadIdx.x / 32 % 4 * 16, lane = threadIdx.x % 32;
    asked = min(first + lane % 16, n - 1);
    low = min(first + lane / 4, n - 1), high = min(first + lane / 4 + 8, n - 1);
  }
  // Address of 16-byte piece `piece` of the asked row, of so many of a row.
  template <int PIECES> __device__ __forceinline__ uint32_t piece(uint32_t codes, int piece) const {
    return codes + (uint32_t)(asked * PIECES + (piece ^ (PIECES == 8 ? asked & 7 : asked / 2 & 3))) * 16;
  }
};

struct Bytes {
  static constexpr int ROW_BYTES = 128, SCALE_BYTES = 8;
  static __device__ __forceinline__ void weights(Weights &a, uint32_t codes, uint32_t scales, const Rows &rows) {
    int lane = threadIdx.x % 32;
    uint2 low = shared_words(scales + rows.low * 8), high = shared_words(scales + rows.high * 8);
#pragma unroll
    for (int block = 0; block < 4; block++) {
      uint32_t w[4];
      ldmatrix(w, rows.piece<8>(codes, block * 2 + lane / 16));
      uint32_t s = twice(block % 2, block < 2 ? low.x : low.y), t = twice(block % 2, block < 2 ? high.x : high.y);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t top = w[2 * half], bottom = w[2 * half + 1];
        uint32_t(&of)[4] = a[2 * block + half];
        of[0] = times(of_bytes(top), s), of[1] = times(of_bytes(bottom), t);
        of[2] = times(of_bytes(top >> 8), s), of[3] = times(of_bytes(bottom >> 8), t);
      }
    }
  }
};

struct Nibbles {
  static constexpr int ROW_BYTES = 64, SCALE_BYTES = 16;
  static __device__ __forceinline__ void weights(Weights &a, uint32_t codes, uint32_t scales, const Rows &rows) {
    int lane = threadIdx.x % 32;
    auto number = [](uint32_t w, uint32_t scale, uint32_t minimum) {
      return times_minus(minus(of_nibbles(w), NIBBLE_BASE), scale, minimum);
    };
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      uint32_t w[4];
      ldmatrix(w, rows.piece<4>(codes, pair * 2 + lane / 16));
      uint2 low = shared_words(scales + rows.low * 16 + pair * 8), high = shared_words(scales + rows.high * 16 + pair * 8);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t top = w[2 * i], bottom = w[2 * i + 1], l = i ? low.y : low.x, h = i ? high.y : high.x;
        uint32_t s = twice(0, l), m = twice(1, l), t = twice(0, h), n = twice(1, h);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          uint32_t(&of)[4] = a[4 * pair + 2 * i + half];
          of[0] = number(top >> 8 * half, s, m), of[1] = number(bottom >> 8 * half, t, n);
          of[2] = number(top >> (8 * half + 4), s, m), of[3] = number(bottom >> (8 * half + 4), t, n);
        }
      }
    }
  }
};

struct Sixes {
  static constexpr int ROW_BYTES = 64, SCALE_BYTES = SIXES_BESIDE;
  static __device__ __forceinline__ void weights(Weights &a, uint32_t codes, uint32_t beside, const Rows &rows) {
    int lane = threadIdx.x % 32, t = lane % 4;
    uint32_t of_row[2] = {beside + rows.low * SCALE_BYTES, beside + rows.high * SCALE_BYTES};
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      uint32_t w[4];
      ldmatrix(w, rows.piece<4>(codes, pair * 2 + lane / 16));
#pragma unroll
      for (int r = 0; r < 2; r++) {
        uint32_t upper = shared_word(of_row[r] + pair * 16 + t * 4);
        uint2 scales = shared_words(of_row[r] + SIXES_SCALES + pair * 8);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          uint32_t v = w[2 * i + r], u = i ? upper >> 4 : upper << 4;  // the block's first input to bit 4
          uint32_t s = twice(0, i ? scales.y : scales.x), z = twice(1, i ? scales.y : scales.x);
          a[4 * pair + 2 * i][r] = times(of_sixes(v, u), s);
          a[4 * pair + 2 * i][r + 2] = times(of_sixes(v >> 4, u >> 2), s);
          a[4 * pair + 2 * i + 1][r] = times(of_sixes(v >> 8, u >> 4), z);
          a[4 * pair + 2 * i + 1][r + 2] = times(of_sixes(v >> 12, u >> 6), z);
        }
      }
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

// Bytes, a multiple of 16, that are read once.
__device__ __forceinline__ void copy_bytes_stream(uint32_t to, const void *from, int bytes, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
// All threads of so many warpgroups.
template <int GROUPS> __device__ __forceinline__ void groups_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(GROUPS * 128) : "memory");
}

// `most` and `less` map the codes, [matrix rows][n_in], in boxes of a chunk of pass_units units, and of one less; `x` [n_rows][n_in]
// in boxes of two panels of N rows. Rows of the matrix are even in number.
template <class Format, int N, int MODE>
__device__ __forceinline__ void narrow(const Narrow &p, const TensorMap *most, const TensorMap *less, const TensorMap *x) {
  constexpr int MATRICES = MODE == SWIGLU ? 2 : 1, PANEL_BYTES = N * 128, X_BYTES = 2 * PANEL_BYTES;
  constexpr int ROW_BYTES = Format::ROW_BYTES, SCALE_BYTES = Format::SCALE_BYTES, GROUPS = ::GROUPS<N>;
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2][MOST_STAGES];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Share share(p);
  int n_chunks = p.n_in / K, matrix_rows = MATRICES * p.n_out;

  // Stages: panels of activations, then codes (of the gates, of the ups), then what lies beside them. A stage is always the same
  // group's, as the ring is a multiple of groups long: who waits for a barrier's next phase by its parity must have seen the one
  // before. Behind the ring the sums that groups hand to the first.
  uint32_t ring = ((uint32_t)__cvta_generic_to_shared(shared) + 1023) & ~1023u;
  uint32_t scales_at = X_BYTES + MATRICES * p.pass_units * UNIT * ROW_BYTES;
  uint32_t stage_bytes = scales_at + MATRICES * p.pass_units * UNIT * SCALE_BYTES + 1023 & ~1023u;
  Ring turns(barriers, p.stages);

  if (warp == GROUPS * 4) {  // fetches
    if (!elected()) return;
    uint64_t policy = streaming_policy();
    auto fetch_matrix = [&](int pass, int chunk, int stage) {
      uint32_t to = ring + stage * stage_bytes, full = turns.full + stage * 8;
      int units = share.fetched(pass), rows = units * UNIT, begin = share.row(pass), scale_rows[MATRICES], all = 0;
#pragma unroll
      for (int m = 0; m < MATRICES; m++) all += scale_rows[m] = min(rows, matrix_rows - begin - m * p.n_out);
      barrier_expect(full, MATRICES * rows * ROW_BYTES + all * SCALE_BYTES + X_BYTES);
#pragma unroll
      for (int m = 0; m < MATRICES; m++) {
        int row = begin + m * p.n_out;
        copy_panels_stream(to + X_BYTES + m * rows * ROW_BYTES, units == p.pass_units ? most : less, chunk, row, full, policy);
        copy_bytes_stream(to + scales_at + m * rows * SCALE_BYTES,
                          (const char *)p.matrix_factors + ((size_t)chunk * matrix_rows + row) * SCALE_BYTES,
                          scale_rows[m] * SCALE_BYTES, full, policy);
      }
    };
    auto fetch_x = [&](int chunk, int stage) { copy_panels(ring + stage * stage_bytes, x, chunk * 2, 0, turns.full + stage * 8); };
    turns.fill(p, n_chunks, fetch_matrix, fetch_x);
  } else {  // multiplies
    wait_previous();
    allow_next();  // sooner, its blocks would come between these and the ones before
    int group = warp / 4;
    float *sums = (float *)(shared + (ring - (uint32_t)__cvta_generic_to_shared(shared)) + p.stages * stage_bytes) + threadIdx.x % 128;
    uint32_t base = (uint32_t)panel_descriptor(ring, 16);
    float old[MODE == ADD_F32 ? N / 2 : 1];
    int i = group, stage = group, parity = 0;
    for (int pass = 0; pass < p.n_passes; pass++) {
      int first = share.row(pass), n = share.outputs(pass, p), n_fetched = share.fetched(pass) * UNIT;
      Rows rows(n_fetched);
      if constexpr (MODE == ADD_F32)
        if (group == 0) fetch_old<N>(old, p, first, n);
      float acc[MATRICES][N / 2] = {};
      for (; i < (pass + 1) * n_chunks; i += GROUPS) {
        barrier_wait(turns.full + stage * 8, parity);
        uint32_t at = stage * stage_bytes, b = base + (at >> 4);
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
          Weights a;
          Format::weights(a, ring + at + X_BYTES + m * n_fetched * ROW_BYTES,
                          ring + at + scales_at + m * n_fetched * SCALE_BYTES, rows);
          wgmma_begin();
#pragma unroll
          for (int kk = 0; kk < K / 16; kk++) multiply(acc[m], a[kk], b + (kk / 4 * PANEL_BYTES + kk % 4 * 32 >> 4));
          wgmma_commit();
          wgmma_wait<0>();
          hold(acc[m]);
        }
        if (lane == 0) barrier_arrive(turns.empty + stage * 8);
        stage += GROUPS;
        if (stage >= p.stages) stage -= p.stages, parity ^= 1;
      }
      auto sum = [&](int group, int m, int j) -> float & { return sums[(((group - 1) * MATRICES + m) * N / 2 + j) * 128]; };
      if (group > 0) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
#pragma unroll
          for (int j = 0; j < N / 2; j++) sum(group, m, j) = acc[m][j];
      }
      groups_meet<GROUPS>();
      if (group == 0) {
#pragma unroll
        for (int m = 0; m < MATRICES; m++)
#pragma unroll
          for (int j = 0; j < N / 2; j++)
#pragma unroll
            for (int other = 1; other < GROUPS; other++) acc[m][j] += sum(other, m, j);
#pragma unroll
        for (int j = 0; j < N / 2; j++) {
          if (output_of(j) >= n || row_of(j) >= p.n_rows) continue;
          float v = acc[0][j];
          if constexpr (MODE == SWIGLU) v = silu(v) * acc[1][j];
          if constexpr (MODE == ADD_F32) v += old[j];
          put<MODE>(p, row_of(j), first + output_of(j), v);
        }
      }
      groups_meet<GROUPS>();
    }
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define NARROW(NAME, FORMAT, N, MODE)                                                                         \
  extern "C" __global__ __launch_bounds__((GROUPS<N> * 4 + 1) * 32, 1) void NAME##_##N(                          \
      const __grid_constant__ Narrow p, const __grid_constant__ TensorMap most,                               \
      const __grid_constant__ TensorMap less, const __grid_constant__ TensorMap x) {                          \
    narrow<FORMAT, N, MODE>(p, &most, &less, &x);                                                             \
  }
#define NARROW_ALL(NAME, FORMAT, N)                        \
  NARROW(narrow_##NAME##_store, FORMAT, N, STORE)          \
  NARROW(narrow_##NAME##_store_f32, FORMAT, N, STORE_F32)  \
  NARROW(narrow_##NAME##_add, FORMAT, N, ADD_F32)          \
  NARROW(narrow_##NAME##_swiglu, FORMAT, N, SWIGLU)
NARROW_ALL(bytes, Bytes, 32)
NARROW_ALL(bytes, Bytes, 64)
NARROW_ALL(nibbles, Nibbles, 32)
NARROW_ALL(nibbles, Nibbles, 64)
NARROW_ALL(sixes, Sixes, 32)
NARROW_ALL(sixes, Sixes, 64)
#endif
