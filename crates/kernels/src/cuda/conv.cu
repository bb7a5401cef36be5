// Between the W_pack product and attention: the convolution over K and V, RoPE, and the writes to the caches.
#include "common.cuh"

// V numbers side by side.
template <typename T, int V> struct alignas(sizeof(T) * V) Vector {
  T at[V];
};
template <typename T, int V> __device__ __forceinline__ void load(float (&to)[V], const T *from) {
  Vector<T, V> v = *(const Vector<T, V> *)from;
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = to_f32(v.at[i]);
}
template <typename T, int V> __device__ __forceinline__ void store(T *to, const float (&from)[V]) {
  Vector<T, V> v;
#pragma unroll
  for (int i = 0; i < V; i++) v.at[i] = from_f32<T>(from[i]);
  *(Vector<T, V> *)to = v;
}
// (a, b) turned by the angles.
template <int V> __device__ __forceinline__ void turn(float (&a)[V], float (&b)[V], const float2 *angles) {
#pragma unroll
  for (int i = 0; i < V; i++) {
    float2 t = angles[i];
    float x = a[i] * t.x - b[i] * t.y;
    b[i] = a[i] * t.y + b[i] * t.x;
    a[i] = x;
  }
}

// One block a row from `row0` on: rotates query heads, convolves K/V heads and rotates the keys; a thread does V
// columns of a head's left half and theirs of the right. An entry of one token writes its key and value to the cache
// and shifts its carried rows; a chunk's go to `fresh`, because its queries still have to see what they will overwrite
// in a ring (see commit()).
template <typename T, int V> __device__ void conv_rope(Step s, Cache c, ConvLayer l, int row0) {
  begin();
  int row = row0 + blockIdx.x, d = c.head_dim, half = d / 2;
  int pos = s.pos[row];
  if (pos < 0) return;
  int kv = c.n_kv * d, width = l.n_q * d + 2 * kv;
  T *packed = (T *)l.packed + (size_t)row * width;
  const float2 *angles = l.angles + (size_t)pos * half;
  int e = s.entry[row], back = l.taps_count - 1, index = row - s.first_row[e];
  bool alone = s.len[e] == 1;
  for (int unit = threadIdx.x; unit < (l.n_q + 2 * c.n_kv) * (half / V); unit += blockDim.x) {
    int h = unit / (half / V), i = unit % (half / V) * V;
    T *raw = packed + h * d + i;
    if (h < l.n_q) {
      float a[V], b[V];
      load<T>(a, raw);
      load<T>(b, raw + half);
      turn(a, b, angles + i);
      store(raw, a);
      store(raw + half, b);
      continue;
    }
    int which = (h - l.n_q) / c.n_kv, head = (h - l.n_q) % c.n_kv;
    const float *taps = l.taps + (which * c.n_kv + head) * l.taps_count;
    T *carry = (T *)l.carry + ((size_t)s.slot[e] * back * 2 + which) * kv + head * d + i;
    float a[V] = {}, b[V] = {};
    for (int j = 0; j <= back; j++) {
      int from = index - back + j;  // row of the chunk; below 0: carried
      const T *x = from >= 0 ? raw - (size_t)(index - from) * width : carry + (size_t)(from + back) * 2 * kv;
      float xa[V], xb[V];
      load<T>(xa, x);
      load<T>(xb, x + half);
#pragma unroll
      for (int k = 0; k < V; k++) a[k] += taps[j] * xa[k], b[k] += taps[j] * xb[k];
    }
    if (alone)
      for (int j = 0; j < back; j++) {
        T *at = carry + (size_t)j * 2 * kv;
        const T *next = j + 1 < back ? at + 2 * kv : raw;
        *(Vector<T, V> *)at = *(const Vector<T, V> *)next;
        *(Vector<T, V> *)(at + half) = *(const Vector<T, V> *)(next + half);
      }
    if (which == 0) turn(a, b, angles + i);
    T *to = (alone ? cached<T>(c, s, e, pos, which, head) : (T *)l.fresh + ((size_t)row * 2 + which) * kv + head * d) + i;
    store(to, a);
    store(to + half, b);
  }
}
extern "C" __global__ void conv_rope_f32(Step s, Cache c, ConvLayer l, int row0) { conv_rope<float, 1>(s, c, l, row0); }
extern "C" __global__ void conv_rope_bf16(Step s, Cache c, ConvLayer l, int row0) { conv_rope<bf16, 1>(s, c, l, row0); }
// For half heads of a multiple of 8.
extern "C" __global__ void conv_rope_bf16_8(Step s, Cache c, ConvLayer l, int row0) {
  conv_rope<bf16, 8>(s, c, l, row0);
}

// After a chunk's attention: its keys and values into the cache, its last raw rows into the carry.
// One block a row from `row0` on; a thread does V columns.
template <typename T, int V> __device__ void commit(Step s, Cache c, ConvLayer l, int row0) {
  begin();
  int row = row0 + blockIdx.x, d = c.head_dim, kv = c.n_kv * d;
  int pos = s.pos[row];
  if (pos < 0) return;
  int e = s.entry[row], len = s.len[e], index = row - s.first_row[e], back = l.taps_count - 1;
  bool stays = !c.ring_rows || index >= len - c.ring_rows;
  int width = l.n_q * d + 2 * kv;
  for (int unit = threadIdx.x; unit < 2 * kv / V; unit += blockDim.x) {
    int which = unit / (kv / V), column = unit % (kv / V) * V;
    if (stays) {
      const T *from = (const T *)l.fresh + ((size_t)row * 2 + which) * kv + column;
      T *to = cached<T>(c, s, e, pos, which, column / d) + column % d;
      *(Vector<T, V> *)to = *(const Vector<T, V> *)from;
    }
    if (index == len - 1) {
      const T *raw = (const T *)l.packed + (size_t)row * width + l.n_q * d + which * kv + column;
      T *carry = (T *)l.carry + ((size_t)s.slot[e] * back * 2 + which) * kv + column;
      // Ascending: with a chunk shorter than the carry, a row moves down before it is overwritten.
      for (int j = 0; j < back; j++) {
        int from = len - back + j;
        const T *x = from >= 0 ? raw - (size_t)(index - from) * width : carry + (size_t)(from + back) * 2 * kv;
        *(Vector<T, V> *)(carry + (size_t)j * 2 * kv) = *(const Vector<T, V> *)x;
      }
    }
  }
}
extern "C" __global__ void commit_f32(Step s, Cache c, ConvLayer l, int row0) { commit<float, 1>(s, c, l, row0); }
extern "C" __global__ void commit_bf16(Step s, Cache c, ConvLayer l, int row0) { commit<bf16, 1>(s, c, l, row0); }
extern "C" __global__ void commit_bf16_8(Step s, Cache c, ConvLayer l, int row0) { commit<bf16, 8>(s, c, l, row0); }
