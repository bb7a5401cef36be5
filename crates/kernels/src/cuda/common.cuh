// What every kernel file shares: the step's description, where cached keys and values lie, sums over threads.
//
// Every kernel begins with `begin()`: it lets the next kernel of the stream be scheduled early and then waits for
// the kernels before it (programmatic dependent launch). One that would not wait could end before those, and the next,
// which waits for it alone, would overtake them. What a kernel reads before the wait must not be written by any kernel
// of the step: weights, tables, keys and values of earlier steps.
#pragma once
#include <stdint.h>

__device__ __forceinline__ void allow_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void begin() {
  allow_next();
  wait_previous();
}

// A step's integers on the device; mirrors `StepPointers` in step.rs.
// Rows are new tokens, entries are sequences; a row with pos < 0 is padding.
struct Step {
  const int *token, *pos, *entry;                             // per row
  const int *slot, *start, *first_row, *len, *g_off, *w_off;  // per entry
  const int *blocks;                                          // both block tables of every entry, one after another
};

// One layer's cache: [block][k, v][kv head][row of the block][head_dim]; mirrors `CacheShape` in attention.rs.
struct Cache {
  void *data;
  int block_tokens;
  int n_kv, head_dim;
  int ring_rows;  // length of a sequence's ring; 0: the layer is paged
  int window;     // keys a query sees, itself included; 0: all
};

// What is common to a layer's rows; mirrors `ConvLayer` in conv.rs.
struct ConvLayer {
  void *packed;          // [rows][(n_q + 2 n_kv) · head_dim]: q, k, v of W_pack; q is rotated in place
  void *fresh;           // [rows][k, v][n_kv][head_dim]: convolved keys (rotated) and values of chunks
  void *carry;           // [slot][taps - 1][k, v][n_kv][head_dim]: raw rows before the entry's first
  const float *taps;     // [k, v][n_kv][taps], oldest token first
  const float2 *angles;  // [position][head_dim / 2]
  int n_q, taps_count;
};

// First element of the key (which = 0) or value (which = 1) at a position.
template <typename T>
__device__ __forceinline__ T *cached(const Cache &c, const Step &s, int e, int pos, int which, int head) {
  int row = c.ring_rows ? pos % c.ring_rows : pos;
  int offset = c.ring_rows ? s.w_off[e] : s.g_off[e];
  int block = s.blocks[offset + row / c.block_tokens];
  size_t line = (((size_t)block * 2 + which) * c.n_kv + head) * c.block_tokens + row % c.block_tokens;
  return (T *)c.data + line * c.head_dim;
}

__device__ __forceinline__ int first_key(const Cache &c, int pos) {
  return c.window && pos >= c.window ? pos - c.window + 1 : 0;
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int i = 16; i; i >>= 1) x += __shfl_xor_sync(~0u, x, i);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
  for (int i = 16; i; i >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
  return x;
}
// Sum over the block, in every thread; `scratch` holds 33 floats.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) {
    float y = threadIdx.x < (blockDim.x + 31) / 32 ? scratch[threadIdx.x] : 0.f;
    y = warp_sum(y);
    if (threadIdx.x == 0) scratch[32] = y;
  }
  __syncthreads();
  return scratch[32];
}
