// Between the W_pack product and attention: the convolution over K and V, RoPE, and the writes to the caches.
#include "common.cuh"

// What is common to a layer's rows; mirrors `ConvLayer` in conv.rs.
struct ConvLayer {
  void *packed;          // [rows][(n_q + 2 n_kv) · head_dim]: q, k, v of W_pack; q is rotated in place
  void *fresh;           // [rows][k, v][n_kv][head_dim]: convolved keys (rotated) and values of chunks
  void *carry;           // [slot][taps - 1][k, v][n_kv][head_dim]: raw rows before the entry's first
  const float *taps;     // [k, v][n_kv][taps], oldest token first
  const float2 *angles;  // [position][head_dim / 2]
  int n_q, taps_count;
};

// One block a (row, head): rotates a query head, or convolves and rotates a K/V head. An entry of one token writes
// its key and value to the cache and shifts its carried rows; a chunk's go to `fresh`, because its queries still
// have to see what they will overwrite in a ring (see commit()).
template <typename T> __device__ void conv_rope(Step s, Cache c, ConvLayer l) {
  begin();
  int row = blockIdx.x, unit = blockIdx.y, half = c.head_dim / 2, d = c.head_dim;
  int pos = s.pos[row];
  if (pos < 0) return;
  int width = (l.n_q + 2 * c.n_kv) * d;
  T *packed = (T *)l.packed + (size_t)row * width;
  const float2 *angles = l.angles + (size_t)pos * half;
  if (unit < l.n_q) {
    T *q = packed + unit * d;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
      float2 t = angles[i];
      float a = to_f32(q[i]), b = to_f32(q[i + half]);
      q[i] = from_f32<T>(a * t.x - b * t.y);
      q[i + half] = from_f32<T>(a * t.y + b * t.x);
    }
    return;
  }
  int head = unit - l.n_q, e = s.entry[row], back = l.taps_count - 1, kv = c.n_kv * d;
  int index = row - s.first_row[e];
  bool alone = s.len[e] == 1;
  for (int which = 0; which < 2; which++) {
    const float *taps = l.taps + (which * c.n_kv + head) * l.taps_count;
    const T *raw = packed + l.n_q * d + which * kv + head * d;
    T *carry = (T *)l.carry + ((size_t)s.slot[e] * back * 2 + which) * kv + head * d;
    T *to = alone ? cached<T>(c, s, e, pos, which, head) : (T *)l.fresh + ((size_t)row * 2 + which) * kv + head * d;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
      float a = 0.f, b = 0.f;
      for (int j = 0; j <= back; j++) {
        int from = index - back + j;  // row of the chunk; below 0: carried
        const T *x = from >= 0 ? raw - (size_t)(index - from) * width : carry + (size_t)(from + back) * 2 * kv;
        a += taps[j] * to_f32(x[i]);
        b += taps[j] * to_f32(x[i + half]);
      }
      if (alone && back > 0) {
        for (int j = 0; j + 1 < back; j++) {
          T *at = carry + (size_t)j * 2 * kv;
          at[i] = at[i + 2 * kv];
          at[i + half] = at[i + half + 2 * kv];
        }
        T *last = carry + (size_t)(back - 1) * 2 * kv;
        last[i] = raw[i];
        last[i + half] = raw[i + half];
      }
      if (which == 0) {
        float2 t = angles[i];
        float x = a * t.x - b * t.y;
        b = a * t.y + b * t.x;
        a = x;
      }
      to[i] = from_f32<T>(a);
      to[i + half] = from_f32<T>(b);
    }
  }
}
extern "C" __global__ void conv_rope_f32(Step s, Cache c, ConvLayer l) { conv_rope<float>(s, c, l); }
extern "C" __global__ void conv_rope_bf16(Step s, Cache c, ConvLayer l) { conv_rope<bf16>(s, c, l); }

// After a chunk's attention: its keys and values into the cache, its last raw rows into the carry.
// One block a (row from `row0` on, K/V head).
template <typename T> __device__ void commit(Step s, Cache c, ConvLayer l, int row0) {
  begin();
  int row = row0 + blockIdx.x, head = blockIdx.y, d = c.head_dim, kv = c.n_kv * d;
  int pos = s.pos[row];
  if (pos < 0) return;
  int e = s.entry[row], len = s.len[e], index = row - s.first_row[e], back = l.taps_count - 1;
  bool stays = !c.ring_rows || index >= len - c.ring_rows;
  int width = (l.n_q + 2 * c.n_kv) * d;
  for (int which = 0; which < 2; which++) {
    if (stays) {
      const T *from = (const T *)l.fresh + ((size_t)row * 2 + which) * kv + head * d;
      T *to = cached<T>(c, s, e, pos, which, head);
      for (int i = threadIdx.x; i < d; i += blockDim.x) to[i] = from[i];
    }
    if (index == len - 1) {
      const T *raw = (const T *)l.packed + (size_t)row * width + l.n_q * d + which * kv + head * d;
      T *carry = (T *)l.carry + ((size_t)s.slot[e] * back * 2 + which) * kv + head * d;
      for (int i = threadIdx.x; i < d; i += blockDim.x) {
        // Ascending: with a chunk shorter than the carry, a row moves down before it is overwritten.
        for (int j = 0; j < back; j++) {
          int from = len - back + j;
          carry[(size_t)j * 2 * kv + i] =
              from >= 0 ? raw[i - (ptrdiff_t)(index - from) * width] : carry[(size_t)(from + back) * 2 * kv + i];
        }
      }
    }
  }
}
extern "C" __global__ void commit_f32(Step s, Cache c, ConvLayer l, int row0) { commit<float>(s, c, l, row0); }
extern "C" __global__ void commit_bf16(Step s, Cache c, ConvLayer l, int row0) { commit<bf16>(s, c, l, row0); }
