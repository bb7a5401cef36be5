// What products with some tens of rows of activations share: narrow.cu, with matrices of sixteen bits and of floats of eight,
// and narrow_quant.cu.
//
// The matrix's rows are the 64 rows of Hopper's asynchronous tensor core instructions, activations their columns, so the tile is
// as narrow as the batch. The grid is as large as the GPU, and every block makes an equal share of the outputs, some tens of
// rows of the matrix at a time. One thread has the tensor memory unit fill a ring of shared memory; warpgroups multiply. The
// matrix does not depend on the kernel before, so the ring is filled with it before waiting for that kernel.
#pragma once
#include "wgmma.cuh"

enum Mode { STORE = 0, STORE_F32 = 1, ADD_F32 = 2, SWIGLU = 3 };

// Shares begin at multiples of so many rows of the matrix.
constexpr int UNIT = 8;
constexpr int MOST_STAGES = 16;

// Mirrors `Raw` in narrow.rs.
struct Narrow {
  void *y;  // [n_rows][n_out]
  // Of floats of eight bits: what the matrix's rows and the activations' are multiplied by. Of codes the first is what lies beside
  // them. Null else.
  const void *matrix_factors;
  const float *x_factors;
  int n_out, n_in, n_rows;
  int n_passes;    // as many in every block
  int pass_units;  // most units in a pass; every pass has as many, or one less
  int stages;
  int inbox;  // of codes: bytes from the ring's beginning to where a cluster's blocks hand each other sums
};

// Of a warp its number in the block, such that the compiler knows it to be the same for all lanes.
__device__ __forceinline__ int warp_of_block() { return __shfl_sync(0xffffffff, threadIdx.x / 32, 0); }
// Has the processor know a map by the time it is used.
__device__ __forceinline__ void prefetch_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
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

// One of `n_shares` shares of the matrix's rows, in units, and how it is cut into passes.
struct Share {
  int first, n, n_passes;
  __device__ __forceinline__ Share(const Narrow &p, int share, int n_shares) : n_passes(p.n_passes) {
    long long n_units = (p.n_out + UNIT - 1) / UNIT;
    first = (int)(n_units * share / n_shares);
    n = (int)(n_units * (share + 1) / n_shares) - first;
  }
  __device__ __forceinline__ int begin(int pass) const { return n * pass / n_passes; }
  // First row of the matrix.
  __device__ __forceinline__ int row(int pass) const { return (first + begin(pass)) * UNIT; }
  // Units that are fetched for a pass: at least one, and be it for nothing.
  __device__ __forceinline__ int fetched(int pass) const { return max(begin(pass + 1) - begin(pass), 1); }
  // Outputs of a pass.
  __device__ __forceinline__ int outputs(int pass, const Narrow &p) const {
    return min((begin(pass + 1) - begin(pass)) * UNIT, p.n_out - row(pass));
  }
};

// Barriers of a ring of stages in shared memory, by address: of a stage that is full, and of one that every warp that multiplies
// is through with.
struct Ring {
  uint32_t full, empty;
  // Of all of a block's threads; `n_warps` multiply.
  __device__ __forceinline__ Ring(uint64_t (&barriers)[2][MOST_STAGES], int stages, int n_warps) {
    full = (uint32_t)__cvta_generic_to_shared(barriers[0]), empty = (uint32_t)__cvta_generic_to_shared(barriers[1]);
    if (threadIdx.x == 0) {
      for (int stage = 0; stage < stages; stage++) {
        barrier_init(full + stage * 8, 1);
        barrier_init(empty + stage * 8, n_warps);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
  }
  // Of one thread: fetches the block's chunks of every pass, as stages become free; activations after the kernel before.
  template <class Matrix, class X>
  __device__ __forceinline__ void fill(const Narrow &p, int begin, int end, Matrix fetch_matrix, X fetch_x) const {
    int n_chunks = end - begin, total = p.n_passes * n_chunks, ahead = min(p.stages, total);
    for (int i = 0; i < ahead; i++) fetch_matrix(i / n_chunks, begin + i % n_chunks, i);
    wait_previous();
    for (int i = 0; i < ahead; i++) fetch_x(begin + i % n_chunks, i);
    int pass = ahead / n_chunks, chunk = begin + ahead % n_chunks, stage = 0, parity = 0;
    for (int i = ahead; i < total; i++) {
      barrier_wait(empty + stage * 8, parity);
      fetch_matrix(pass, chunk, stage);
      fetch_x(chunk, stage);
      if (++chunk == end) chunk = begin, pass++;
      if (++stage == p.stages) stage = 0, parity ^= 1;
    }
  }
};

// Of a tile's numbers in a thread of a warpgroup: the row of activations.
__device__ __forceinline__ int row_of(int i) { return i / 4 * 8 + threadIdx.x % 4 * 2 + (i & 1); }

// A number of a row of results.
template <int MODE> __device__ __forceinline__ void put(const Narrow &p, int row, int output, float v) {
  size_t at = (size_t)row * p.n_out + output;
  if constexpr (MODE == STORE || MODE == SWIGLU)
    ((Number *)p.y)[at] = from_f32<Number>(v);
  else
    ((float *)p.y)[at] = v;
}
__device__ __forceinline__ float silu(float v) { return v / (1.f + __expf(-v)); }

// Registers of an instruction, four and sixteen numbers of `d` from `i` on, and their names.
#define D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(d, i) D4(d, i), D4(d, i + 4), D4(d, i + 8), D4(d, i + 12)
#define R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define R32 R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R48 R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define R64 R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
