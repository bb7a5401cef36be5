// Products of a matrix of sixteen bits with few rows of activations.
#include "gemv.cuh"

// By the most rows of activations; what fits into a multiprocessor's shared memory, and was fastest. `few.rs` knows
// the threads and bytes of each.
#define GEMV(N, TILES, WARPS, STAGES)                                                                                \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_store_##N(Gemv p) {                                  \
    gemv<Plain, TILES, N / 8, WARPS, STAGES, STORE>(p);                                                                     \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_store_f32_##N(Gemv p) {                              \
    gemv<Plain, TILES, N / 8, WARPS, STAGES, STORE_F32>(p);                                                                 \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_add_##N(Gemv p) {                                    \
    gemv<Plain, TILES, N / 8, WARPS, STAGES, ADD_F32>(p);                                                                   \
  }                                                                                                                  \
  extern "C" __global__ __launch_bounds__(WARPS * 32) void gemv_swiglu_##N(Gemv p) {                                 \
    gemv<Plain, TILES, N / 8, WARPS, STAGES, SWIGLU>(p);                                                                    \
  }
GEMV(8, 3, 8, 3)
GEMV(16, 3, 8, 3)
