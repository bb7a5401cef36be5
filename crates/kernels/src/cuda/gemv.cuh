// Products of a matrix with a few rows of activations, bf16 or f16: as fast as the matrix can be read.
//
// The grid is as large as the GPU, and every block makes an equal share of the outputs, some tens at a time. Its warps
// share the sum over the inputs: each takes every so-manieth chunk of inputs, of all the share's matrix rows, through
// a ring of shared memory of its own, so that warps wait for nobody but memory. The activations of a chunk travel in
// the same ring. The matrix does not depend on the kernel before, so the ring is filled with it before waiting for that
// kernel; only then are activations asked for.
//
// A norm around a product costs no launch: x / rms(x) · w is (x · w) / rms(x), and the division can wait until after
// the product. Who makes the residual x also writes x · w and its blocks' sums of squares (`norm_weight`), and the
// product that reads x · w divides its results (`squares`). Not for f16, beyond which x · w may be: few.rs.
#pragma once
#include "mma.cuh"

enum Mode { STORE = 0, STORE_F32 = 1, ADD_F32 = 2, SWIGLU = 3 };

// Mirrors `Raw` in few.rs.
struct Gemv {
  const void *matrix;  // [n_out][n_in] in the format's codes (SWIGLU: [2 · n_out][n_in], gates before ups)
  // The format's scales, [n_in / K][rows of the matrix], or a factor of each of the matrix's rows, f32; null where it
  // has none.
  const void *scales;
  const Number *x;     // [n_rows][n_in]
  void *y;             // [n_rows][n_out]
  int n_out, n_in, n_rows;
  // What x is yet to be divided by: sums of squares [n_rows][n_squares] of n_in numbers; null: nothing.
  const float *squares;
  int n_squares;
  float eps;
  // What the norm after ADD_F32 needs: weight [n_out], y · weight [n_rows][n_out], sums of squares
  // [n_rows][blocks of the grid]; null: nothing.
  const Number *norm_weight;
  Number *scaled;
  float *sums;
};

// Rows of 16-byte pieces, permuted so that eight rows' equal pieces lie in different banks.
template <int PIECES> __device__ __forceinline__ uint32_t piece_at(int row, int piece) {
  return (uint32_t)(row * PIECES + (PIECES >= 8 ? piece ^ (row & 7) : piece ^ (row / 2 & (PIECES - 1)))) * 16;
}

// A format says how many inputs are a chunk (K), how many bytes a row has of it, in codes and in scales (and whatever
// else lies beside the codes: 8 bytes or a multiple of 16), and how a stage is multiplied: codes [TILES · 16] rows, x
// [COLUMNS · 8] rows, scales. Results are multiplied by UNIT and, where ROW_UNIT is not 0, by that and their matrix row's factor.
//
// Numbers of sixteen bits; n_in a multiple of 8.
struct Plain {
  static constexpr int K = 64, ROW_BYTES = 128, SCALE_BYTES = 0;
  static constexpr float ROW_UNIT = 0.f, UNIT = 1.f;

  template <int TILES, int COLUMNS>
  static __device__ __forceinline__ void multiply(float (&acc)[TILES][COLUMNS][4], uint32_t codes, uint32_t x, uint32_t) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t b[COLUMNS][4];  // two steps of 16 inputs
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) ldmatrix(b[c], x + piece_at<8>(c * 8 + lane % 8, half * 4 + lane / 8));
#pragma unroll
      for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
          uint32_t a[4];
          ldmatrix(a, codes + piece_at<8>(m * 16 + lane % 16, half * 4 + kk * 2 + lane / 16));
#pragma unroll
          for (int c = 0; c < COLUMNS; c++) mma(acc[m][c], a, b[c][2 * kk], b[c][2 * kk + 1]);
        }
    }
  }
};

template <class Format, int TILES, int COLUMNS, int WARPS, int STAGES> struct GemvShape {
  static constexpr int ROWS = TILES * 16, N = COLUMNS * 8;
  static constexpr int X_AT = ROWS * Format::ROW_BYTES, SCALES_AT = X_AT + N * Format::K * 2;
  static constexpr int STAGE_BYTES = SCALES_AT + ROWS * Format::SCALE_BYTES;
  static constexpr int LINE = ROWS + 4;  // of partial sums; keeps writes out of each other's banks
  static constexpr int SHARED_BYTES = WARPS * (STAGES * STAGE_BYTES + N * LINE * 4);
};

template <class Format, int TILES, int COLUMNS, int WARPS, int STAGES, int MODE>
__device__ __forceinline__ void gemv(const Gemv &p) {
  using Shape = GemvShape<Format, TILES, COLUMNS, WARPS, STAGES>;
  constexpr int K = Format::K, PIECES = Format::ROW_BYTES / 16, X_PIECES = K / 8, SCALE_BYTES = Format::SCALE_BYTES;
  constexpr int ROWS = Shape::ROWS, N = Shape::N, STAGE_BYTES = Shape::STAGE_BYTES, LINE = Shape::LINE;
  constexpr int OUTS = MODE == SWIGLU ? ROWS / 2 : ROWS;  // outputs of a pass
  constexpr int TURNS = (N + WARPS - 1) / WARPS;          // rows of y that a warp finishes
  constexpr int LINES = (OUTS + 31) / 32;                 // outputs of such a row that a lane finishes
  extern __shared__ __align__(128) char shared[];         // [WARPS][STAGES] stages, then partial sums
  __shared__ float row_scale[N];
  allow_next();
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int out_first = (int)((long long)p.n_out * blockIdx.x / gridDim.x);
  int n_outs = (int)((long long)p.n_out * (blockIdx.x + 1) / gridDim.x) - out_first;
  int n_passes = (n_outs + OUTS - 1) / OUTS;
  int n_chunks = (p.n_in + K - 1) / K, n_steps = (n_chunks + WARPS - 1) / WARPS;
  auto pass_begin = [&](int pass) { return n_outs * pass / n_passes; };

  uint32_t ring = (uint32_t)__cvta_generic_to_shared(shared) + warp * STAGES * STAGE_BYTES;
  float *partial = (float *)(shared + WARPS * STAGES * STAGE_BYTES);  // [WARPS][N][LINE]
  uint64_t policy = streaming_policy();
  int row_bytes = (int)((long long)p.n_in * Format::ROW_BYTES / K);
  int matrix_rows = MODE == SWIGLU ? 2 * p.n_out : p.n_out;
  auto load_matrix = [&](int pass, int step, int stage) {
    int chunk = step * WARPS + warp, begin = pass_begin(pass), n = pass_begin(pass + 1) - begin;
    int line = lane / PIECES, at = chunk * Format::ROW_BYTES + lane % PIECES * 16;
    const char *from = (const char *)p.matrix + (size_t)(out_first + begin + line) * row_bytes + at;
    uint32_t to = ring + stage * STAGE_BYTES;
#pragma unroll
    for (int j = 0; j < ROWS * PIECES / 32; j++) {
      int first = j * (32 / PIECES), r = first + line;
      bool ups = MODE == SWIGLU && r >= OUTS;
      const char *row = from + (size_t)(first + (ups ? p.n_out - OUTS : 0)) * row_bytes;
      if ((ups ? r - OUTS : r) < n)
        copy16_stream(to + piece_at<PIECES>(r, lane % PIECES), row, at < row_bytes, policy);
    }
    if constexpr (SCALE_BYTES > 0) {
      constexpr int AT_ONCE = SCALE_BYTES % 16 ? 8 : 16, COPIES = SCALE_BYTES / AT_ONCE;
#pragma unroll
      for (int i = lane; i < ROWS * COPIES; i += 32) {
        int r = i / COPIES, part = i % COPIES * AT_ONCE;
        bool ups = MODE == SWIGLU && r >= OUTS;
        size_t row = (size_t)chunk * matrix_rows + out_first + begin + r + (ups ? p.n_out - OUTS : 0);
        if ((ups ? r - OUTS : r) < n && chunk < n_chunks)
          copy_scales<AT_ONCE>(to + Shape::SCALES_AT + r * SCALE_BYTES + part,
                               (const char *)p.scales + row * SCALE_BYTES + part);
      }
    }
  };
  auto load_x = [&](int step, int stage) {
    int line = lane / X_PIECES, k = (step * WARPS + warp) * K + lane % X_PIECES * 8;
    uint32_t to = ring + stage * STAGE_BYTES + Shape::X_AT;
#pragma unroll
    for (int j = 0; j < N * X_PIECES / 32; j++) {
      int r = j * (32 / X_PIECES) + line;
      if (r < p.n_rows) copy16(to + piece_at<X_PIECES>(r, lane % X_PIECES), p.x + (size_t)r * p.n_in + k, k < p.n_in);
    }
  };
  int total = n_passes * n_steps;
  int ahead_pass = 0, ahead_step = 0;  // the next to be loaded
  auto advance = [&] {
    if (++ahead_step == n_steps) ahead_step = 0, ahead_pass++;
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < total) load_matrix(ahead_pass, ahead_step, i);
    advance();
    copies_commit();
  }
  wait_previous();
  ahead_pass = ahead_step = 0;
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < total) load_x(ahead_step, i);
    advance();
    copies_commit();
  }
  for (int n = warp; n < p.n_rows; n += WARPS) {
    float sum = 0.f;
    if (p.squares)
      for (int i = lane; i < p.n_squares; i += 32) sum += p.squares[n * p.n_squares + i];
    sum = warp_sum(sum);
    if (lane == 0) row_scale[n] = (p.squares ? rsqrtf(sum / p.n_in + p.eps) : 1.f) * Format::UNIT;
  }

  float acc[TILES][COLUMNS][4] = {};
  float squares[TURNS] = {};
  int stage = 0;
  for (int pass = 0; pass < n_passes; pass++) {
    for (int step = 0; step < n_steps; step++) {
      copies_wait<STAGES - 2>();
      __syncwarp();
      int free = stage == 0 ? STAGES - 1 : stage - 1;
      if (ahead_pass < n_passes) {
        load_matrix(ahead_pass, ahead_step, free);
        load_x(ahead_step, free);
        advance();
      }
      copies_commit();
      uint32_t codes = ring + stage * STAGE_BYTES;
      stage = stage + 1 == STAGES ? 0 : stage + 1;
      if (step * WARPS + warp < n_chunks)
        Format::template multiply<TILES, COLUMNS>(acc, codes, codes + Shape::X_AT, codes + Shape::SCALES_AT);
    }
    int begin = out_first + pass_begin(pass), n_pass_outs = out_first + pass_begin(pass + 1) - begin;
    // What is added to, and rows' factors, are fetched while partial sums are exchanged.
    float factor[2][LINES];  // of plain outputs and gates, of ups
    if constexpr (Format::ROW_UNIT != 0.f) {
#pragma unroll
      for (int i = 0; i < LINES; i++) {
        int j = i * 32 + lane;
        const float *factors = (const float *)p.scales + begin + j;
        factor[0][i] = j < n_pass_outs ? factors[0] * Format::ROW_UNIT : 0.f;
        factor[1][i] = MODE == SWIGLU && j < n_pass_outs ? factors[p.n_out] * Format::ROW_UNIT : 0.f;
      }
    }
    float old[TURNS][LINES];
    if (MODE == ADD_F32) {
#pragma unroll
      for (int turn = 0; turn < TURNS; turn++) {
        int n = turn * WARPS + warp;
#pragma unroll
        for (int i = 0; i < LINES; i++) {
          int j = i * 32 + lane;
          old[turn][i] = n < p.n_rows && j < n_pass_outs ? ((float *)p.y)[(size_t)n * p.n_out + begin + j] : 0.f;
        }
      }
    }
    float *mine = partial + warp * N * LINE;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int c = 0; c < COLUMNS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          mine[(c * 8 + 2 * t + (i & 1)) * LINE + m * 16 + g + 8 * (i / 2)] = acc[m][c][i];
          acc[m][c][i] = 0.f;
        }
    __syncthreads();
    auto sum = [&](int n, int j) {
      float v = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) v += partial[(w * N + n) * LINE + j];
      return v * row_scale[n];
    };
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      int n = turn * WARPS + warp;
      if (n >= p.n_rows) break;
#pragma unroll
      for (int i = 0; i < LINES; i++) {
        int j = i * 32 + lane;
        if (j >= n_pass_outs) break;
        size_t at = (size_t)n * p.n_out + begin + j;
        float v = sum(n, j);
        if (Format::ROW_UNIT != 0.f) v *= factor[0][i];
        if (MODE == SWIGLU) {
          float up = sum(n, j + OUTS);
          if (Format::ROW_UNIT != 0.f) up *= factor[1][i];
          ((Number *)p.y)[at] = from_f32<Number>(v / (1.f + __expf(-v)) * up);
        }
        if (MODE == STORE) ((Number *)p.y)[at] = from_f32<Number>(v);
        if (MODE == STORE_F32) ((float *)p.y)[at] = v;
        if (MODE == ADD_F32) {
          v += old[turn][i];
          ((float *)p.y)[at] = v;
          if (p.norm_weight) {
            p.scaled[at] = from_f32<Number>(v * to_f32(p.norm_weight[begin + j]));
            squares[turn] += v * v;
          }
        }
      }
    }
    if (pass + 1 < n_passes) __syncthreads();
  }
  if (MODE == ADD_F32 && p.norm_weight) {
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      int n = turn * WARPS + warp;
      float sum = warp_sum(squares[turn]);
      if (n < p.n_rows && lane == 0) p.sums[n * gridDim.x + blockIdx.x] = sum;
    }
  }
}
