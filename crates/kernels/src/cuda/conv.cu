// Between the W_pack product and attention: the convolution over K and V, RoPE, and the writes to the caches.
#include "number.cuh"

// V numbers side by side.
template <int V> struct alignas(sizeof(Number) * V) Vector {
  Number at[V];
};
template <int V> __device__ __forceinline__ void load(float (&to)[V], const Number *from) {
  Vector<V> v = *(const Vector<V> *)from;
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = to_f32(v.at[i]);
}
template <int V> __device__ __forceinline__ void store(Number *to, const float (&from)[V]) {
  Vector<V> v;
#pragma unroll
  for (int i = 0; i < V; i++) v.at[i] = from_f32<Number>(from[i]);
  *(Vector<V> *)to = v;
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
template <int V> __device__ void conv_rope(Step s, Cache c, ConvLayer l, int row0) {
  begin();
  int row = row0 + blockIdx.x, d = c.head_dim, half = d / 2;
  int pos = s.pos[row];
  if (pos < 0) return;
  int kv = c.n_kv * d, width = l.n_q * d + 2 * kv;
  Number *packed = (Number *)l.packed + (size_t)row * width;
  const float2 *angles = l.angles + (size_t)pos * half;
  int e = s.entry[row], back = l.taps_count - 1, index = row - s.first_row[e];
  bool alone = s.len[e] == 1;
  for (int unit = threadIdx.x; unit < (l.n_q + 2 * c.n_kv) * (half / V); unit += blockDim.x) {
    int h = unit / (half / V), i = unit % (half / V) * V;
    Number *raw = packed + h * d + i;
    if (h < l.n_q) {
      float a[V], b[V];
      load(a, raw);
      load(b, raw + half);
      turn(a, b, angles + i);
      store(raw, a);
      store(raw + half, b);
      continue;
    }
    int which = (h - l.n_q) / c.n_kv, head = (h - l.n_q) % c.n_kv;
    const float *taps = l.taps + (which * c.n_kv + head) * l.taps_count;
    Number *carry = (Number *)l.carry + ((size_t)s.slot[e] * back * 2 + which) * kv + head * d + i;
    float a[V] = {}, b[V] = {};
    for (int j = 0; j <= back; j++) {
      int from = index - back + j;  // row of the chunk; below 0: carried
      const Number *x = from >= 0 ? raw - (size_t)(index - from) * width : carry + (size_t)(from + back) * 2 * kv;
      float xa[V], xb[V];
      load(xa, x);
      load(xb, x + half);
#pragma unroll
      for (int k = 0; k < V; k++) a[k] += taps[j] * xa[k], b[k] += taps[j] * xb[k];
    }
    if (alone)
      for (int j = 0; j < back; j++) {
        Number *at = carry + (size_t)j * 2 * kv;
        const Number *next = j + 1 < back ? at + 2 * kv : raw;
        *(Vector<V> *)at = *(const Vector<V> *)next;
        *(Vector<V> *)(at + half) = *(const Vector<V> *)(next + half);
      }
    if (which == 0) turn(a, b, angles + i);
    Number *to = (alone ? cached<Number>(c, s, e, pos, which, head) : (Number *)l.fresh + ((size_t)row * 2 + which) * kv + head * d) + i;
    store(to, a);
    store(to + half, b);
  }
}
extern "C" __global__ void conv_rope(Step s, Cache c, ConvLayer l, int row0) { conv_rope<1>(s, c, l, row0); }
#ifndef NUMBER_F32
// For half heads of a multiple of 8.
extern "C" __global__ void conv_rope_8(Step s, Cache c, ConvLayer l, int row0) { conv_rope<8>(s, c, l, row0); }
#endif

// After a chunk's attention: its keys and values into the cache, its last raw rows into the carry.
// One block a row from `row0` on; a thread does V columns.
template <int V> __device__ void commit(Step s, Cache c, ConvLayer l, int row0) {
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
      const Number *from = (const Number *)l.fresh + ((size_t)row * 2 + which) * kv + column;
      Number *to = cached<Number>(c, s, e, pos, which, column / d) + column % d;
      *(Vector<V> *)to = *(const Vector<V> *)from;
    }
    if (index == len - 1) {
      const Number *raw = (const Number *)l.packed + (size_t)row * width + l.n_q * d + which * kv + column;
      Number *carry = (Number *)l.carry + ((size_t)s.slot[e] * back * 2 + which) * kv + column;
      // Ascending: with a chunk shorter than the carry, a row moves down before it is overwritten.
      for (int j = 0; j < back; j++) {
        int from = len - back + j;
        const Number *x = from >= 0 ? raw - (size_t)(index - from) * width : carry + (size_t)(from + back) * 2 * kv;
        *(Vector<V> *)(carry + (size_t)j * 2 * kv) = *(const Vector<V> *)x;
      }
    }
  }
}
extern "C" __global__ void commit(Step s, Cache c, ConvLayer l, int row0) { commit<1>(s, c, l, row0); }
#ifndef NUMBER_F32
extern "C" __global__ void commit_8(Step s, Cache c, ConvLayer l, int row0) { commit<8>(s, c, l, row0); }
#endif
