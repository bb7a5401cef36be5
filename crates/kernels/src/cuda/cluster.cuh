// Blocks of a cluster that split a product's inputs and join their sums; compute capability 9.0 and up.
#pragma once
#include "wgmma.cuh"

// A cluster's blocks make the same outputs, each from a share of the inputs.
struct Split {
  int rank, n;  // 1, 2 or 4
  __device__ __forceinline__ Split() {
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(n));
  }
  __device__ __forceinline__ int begin(int n_chunks) const { return n_chunks * rank / n; }
  __device__ __forceinline__ int end(int n_chunks) const { return n_chunks * (rank + 1) / n; }
};

// Sums over a cluster's blocks. A tile's columns come in groups of eight, four numbers of a thread; group j's sums are made by block
// j % n, which is sent the others'. They go to an inbox of each block, [sender][tile][column group][thread], which may be where the
// ring is: no block sends before all have multiplied the pass.
struct Exchange {
  const Split &split;
  uint32_t inbox, may_send, arrived;
  int n_tiles;
  // Before the cluster's blocks have met. `n_tiles` in all of the block's warpgroups, `n_warps`.
  __device__ __forceinline__ Exchange(uint64_t (&barriers)[2], const Split &split, uint32_t inbox, int n_tiles, int n_warps)
      : split(split), inbox(inbox), n_tiles(n_tiles) {
    may_send = (uint32_t)__cvta_generic_to_shared(&barriers[0]), arrived = (uint32_t)__cvta_generic_to_shared(&barriers[1]);
    if (threadIdx.x == 0 && split.n > 1) {
      barrier_init(may_send, (split.n - 1) * n_warps);
      barrier_init(arrived, (split.n - 1) * n_warps);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
  }
  // Column group of the k-th four of a thread's sums.
  template <int SPLITS> __device__ __forceinline__ int group_of(int k) const { return k * SPLITS + split.rank; }
  // Sends sums of a tile that this warpgroup has made; of all threads that multiply, once a pass. `SPLITS` is split.n, more than one.
  template <int SPLITS, int NUMBERS> __device__ __forceinline__ void send(const float (&acc)[NUMBERS], int tile, int pass) const {
    tell_others(may_send);
    barrier_wait_cluster(may_send, pass & 1);
#pragma unroll
    for (int to = 0; to < SPLITS; to++) {
      if (to == split.rank) continue;
      uint32_t there = in_block(slot<SPLITS, NUMBERS>((split.rank - to - 1) & (SPLITS - 1), tile), to);
#pragma unroll
      for (int k = 0; k < NUMBERS / 4 / SPLITS; k++) store_there(there + k * 128 * 16, &acc[4 * (k * SPLITS + to)]);
    }
    tell_others(arrived);
  }
  // Then receives: the whole sums of the column groups that are this block's.
  template <int SPLITS, int NUMBERS>
  __device__ __forceinline__ void receive(float (&sums)[NUMBERS / SPLITS], const float (&acc)[NUMBERS], int tile, int pass) const {
#pragma unroll
    for (int i = 0; i < NUMBERS / SPLITS; i++) {
      sums[i] = acc[i / 4 * SPLITS * 4 + i % 4];
#pragma unroll
      for (int rank = 1; rank < SPLITS; rank++) sums[i] = rank == split.rank ? acc[4 * (i / 4 * SPLITS + rank) + i % 4] : sums[i];
    }
    barrier_wait_cluster(arrived, pass & 1);
#pragma unroll
    for (int sender = 0; sender < SPLITS - 1; sender++)
#pragma unroll
      for (int k = 0; k < NUMBERS / 4 / SPLITS; k++) {
        float4 v = shared_floats(slot<SPLITS, NUMBERS>(sender, tile) + k * 128 * 16);
        sums[4 * k] += v.x, sums[4 * k + 1] += v.y, sums[4 * k + 2] += v.z, sums[4 * k + 3] += v.w;
      }
  }

 private:
  template <int SPLITS, int NUMBERS> __device__ __forceinline__ uint32_t slot(int sender, int tile) const {
    return inbox + ((sender * n_tiles + tile) * (NUMBERS / 4 / SPLITS) * 128 + threadIdx.x % 128) * 16;
  }
  // Arrives at every other block's barrier, for what a warp has done before.
  __device__ __forceinline__ void tell_others(uint32_t barrier) const {
    int lane = threadIdx.x % 32;
    __syncwarp();
    if (lane < split.n && lane != split.rank)
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(in_block(barrier, lane)) : "memory");
  }
  static __device__ __forceinline__ void barrier_wait_cluster(uint32_t barrier, int parity) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over: }" ::"r"(barrier), "r"(parity)
        : "memory");
  }
  // The same place in another block's shared memory.
  static __device__ __forceinline__ uint32_t in_block(uint32_t at, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
  }
  static __device__ __forceinline__ void store_there(uint32_t to, const float *v) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
                 : "memory");
  }
  static __device__ __forceinline__ float4 shared_floats(uint32_t at) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at));
    return v;
  }
};
// The cluster's blocks, once their barriers are there; of all threads the first, of those that reach for other blocks the second. Not
// of a block that is a cluster of its own: its threads would wait for the end of those that only arrive.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
