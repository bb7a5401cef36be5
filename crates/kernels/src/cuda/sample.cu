// Chooses each row's next token: penalties, temperature, top-k, top-p, min-p and the draw, as the engine's
// `Sampling::choose` defines them. One block a row; a row is read about nine times, from the L2 cache.
//
// Nothing is sorted. "In order" means by falling logit, equal ones by rising id; a place in that order, by count or
// by mass, is found in a histogram of 1024 bins, in 1024 parts of a bin that holds many, then among the few tokens left.
// Masses are whole numbers, so that sums do not depend on the order of additions and equal draws give equal tokens.
#include "common.cuh"
#include <float.h>

typedef unsigned long long u64;

// One row's wish; mirrors `Choice` in sample.rs.
struct Choice {
  double draw;  // in [0, 1)
  int row, place;
  int first_edit, n_seen, n_forbidden;
  float temperature;  // 0: the likeliest
  int top_k;          // 0: off
  float top_p, min_p;
  float repetition, presence, frequency;
};

constexpr int THREADS = 1024, BINS = 1024, LIST = 1024;
// Weight of the likeliest token; the sum over a vocabulary of millions stays below 2^63.
constexpr float UNIT = 1099511627776.f;
// What cannot be chosen.
constexpr float NEVER = -FLT_MAX;

struct Sums {
  u64 count, mass;
};

__device__ __forceinline__ Sums operator+(Sums a, Sums b) { return {a.count + b.count, a.mass + b.mass}; }

struct Shared {
  unsigned count[2][BINS];
  u64 mass[2][BINS];
  float value[LIST];
  int id[LIST];
  Sums of_warp[32];
  Sums before;
  int bin, n_list, bad;
  unsigned low, high;
  float top, bottom;
  Sums found_through;
  float found_value;
  int found_id;
};

// Larger for larger values.
__device__ __forceinline__ unsigned value_key(float l) {
  unsigned bits = __float_as_uint(l + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A row of logits and how its bins lie.
struct Row {
  const float *logits;
  int vocab;
  float top, scale, temperature;

  __device__ __forceinline__ u64 weight(float l) const { return (u64)(expf((l - top) / temperature) * UNIT); }
  __device__ __forceinline__ int bin(float l) const { return min((int)((top - l) * scale), BINS - 1); }
};

template <typename F> __device__ __forceinline__ void each(const float *logits, int vocab, F f) {
  if (vocab % 4 == 0) {
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab / 4; i += THREADS) {
      float4 v = ((const float4 *)logits)[i];
      f(v.x, 4 * i), f(v.y, 4 * i + 1), f(v.z, 4 * i + 2), f(v.w, 4 * i + 3);
    }
  } else {
    for (int i = threadIdx.x; i < vocab; i += THREADS) f(logits[i], i);
  }
}

__device__ __forceinline__ Sums scan_warp(Sums x) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    Sums y = {__shfl_up_sync(~0u, x.count, o), __shfl_up_sync(~0u, x.mass, o)};
    if (lane >= o) x = x + y;
  }
  return x;
}

// Sums over all threads up to this one.
__device__ Sums scan_block(Sums x, Shared &s) {
  x = scan_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 31) s.of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) s.of_warp[threadIdx.x] = scan_warp(s.of_warp[threadIdx.x]);
  __syncthreads();
  return threadIdx.x < 32 ? x : x + s.of_warp[threadIdx.x / 32 - 1];
}

// How far to go in order: until this many tokens, or this much mass, are passed.
struct Goal {
  bool by_count;
  u64 amount;
  __device__ __forceinline__ bool reached(Sums through) const {
    return (by_count ? through.count : through.mass) >= amount;
  }
  __device__ __forceinline__ bool here(Sums through, Sums own) const {
    Sums before = {through.count - own.count, through.mass - own.mass};
    return reached(through) && !reached(before);
  }
};

// Which bin of histogram `h` holds the goal: in `s.bin`, and in `s.before` what lies in the bins before it.
__device__ void find_bin(Shared &s, int h, Goal goal, Sums before) {
  Sums own = {s.count[h][threadIdx.x], s.mass[h][threadIdx.x]};
  Sums through = before + scan_block(own, s);
  if (goal.here(through, own)) {
    s.bin = threadIdx.x;
    s.before = {through.count - own.count, through.mass - own.mass};
  }
  __syncthreads();
}

// The goal among the tokens that `belongs` picks, by rising id: sums per warp, then one warp walks.
template <typename F> __device__ void walk(const Row &row, Shared &s, Goal goal, Sums before, F belongs) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int length = ((row.vocab + 31) / 32 + 31) / 32 * 32;
  auto own = [&](int i) -> Sums {
    if (i >= row.vocab) return {0, 0};
    float l = row.logits[i];
    return belongs(l) ? Sums{1, row.weight(l)} : Sums{0, 0};
  };
  Sums sum = {0, 0};
  for (int i = lane; i < length; i += 32) sum = sum + own(warp * length + i);
  sum = scan_warp(sum);
  __syncthreads();
  if (lane == 31) s.of_warp[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    Sums mine = s.of_warp[lane], through = before + scan_warp(mine);
    unsigned hit = __ballot_sync(~0u, goal.here(through, mine));
    int at = hit ? __ffs(hit) - 1 : 31;
    Sums passed = {through.count - mine.count, through.mass - mine.mass};
    passed = {__shfl_sync(~0u, passed.count, at), __shfl_sync(~0u, passed.mass, at)};
    for (int i = at * length; i < (at + 1) * length; i += 32) {
      Sums one = own(i + lane), upto = passed + scan_warp(one);
      unsigned here = __ballot_sync(~0u, goal.here(upto, one));
      if (here) {
        if (lane == __ffs(here) - 1) {
          s.found_through = upto;
          s.found_value = row.logits[i + lane];
          s.found_id = i + lane;
        }
        break;
      }
      passed = {__shfl_sync(~0u, upto.count, 31), __shfl_sync(~0u, upto.mass, 31)};
    }
  }
  __syncthreads();
}

// The token at which the goal is reached in order: `s.found_id`, `s.found_value`, `s.found_through`. Histogram 0
// holds the whole row.
__device__ void locate(const Row &row, Shared &s, Goal goal) {
  find_bin(s, 0, goal, {0, 0});
  int bin = s.bin;
  Sums before = s.before;
  unsigned n = s.count[0][bin], low = 0, high = ~0u;
  auto belongs = [&](float l) {
    if (l <= NEVER || row.bin(l) != bin) return false;
    unsigned key = value_key(l);
    return low <= key && key <= high;
  };
  __syncthreads();
  // Too many for the list: the part of their values that holds the goal, until few are left or all are equal.
  while (n > LIST) {
    if (threadIdx.x == 0) s.low = ~0u, s.high = 0;
    s.count[1][threadIdx.x] = 0;
    s.mass[1][threadIdx.x] = 0;
    __syncthreads();
    unsigned least = ~0u, most = 0;
    each(row.logits, row.vocab, [&](float l, int) {
      if (belongs(l)) least = min(least, value_key(l)), most = max(most, value_key(l));
    });
    atomicMin(&s.low, __reduce_min_sync(~0u, least));
    atomicMax(&s.high, __reduce_max_sync(~0u, most));
    __syncthreads();
    low = s.low;
    high = s.high;
    if (low == high) return walk(row, s, goal, before, belongs);
    int shift = max(0, 32 - __clz(high - low) - 10);
    each(row.logits, row.vocab, [&](float l, int) {
      if (!belongs(l)) return;
      unsigned part = (high - value_key(l)) >> shift;
      atomicAdd(&s.count[1][part], 1u);
      atomicAdd(&s.mass[1][part], row.weight(l));
    });
    __syncthreads();
    find_bin(s, 1, goal, before);
    before = s.before;
    n = s.count[1][s.bin];
    high -= (unsigned)s.bin << shift;
    low = high - low >= 1u << shift ? high - ((1u << shift) - 1) : low;
    __syncthreads();
  }
  if (threadIdx.x == 0) s.n_list = 0;
  __syncthreads();
  each(row.logits, row.vocab, [&](float l, int id) {
    if (!belongs(l)) return;
    int at = atomicAdd(&s.n_list, 1);
    s.value[at] = l, s.id[at] = id;
  });
  __syncthreads();
  if (threadIdx.x < n) {
    float value = s.value[threadIdx.x];
    int id = s.id[threadIdx.x];
    Sums own = {1, row.weight(value)}, through = before + own;
    for (unsigned i = 0; i < n; i++) {
      float v = s.value[i];
      if (v > value || (v == value && s.id[i] < id)) through = through + Sums{1, row.weight(v)};
    }
    if (goal.here(through, own)) {
      s.found_through = through;
      s.found_value = value;
      s.found_id = id;
    }
  }
  __syncthreads();
}

// At least one, and no more than there is.
__device__ __forceinline__ Goal mass_goal(double share, u64 total, u64 more) {
  u64 amount = (u64)(share * (double)total) + more;
  return {false, min(max(amount, 1ull), total)};
}

// Applies the penalties to tokens seen, then rules out the forbidden ones. Says whether all of them were numbers.
__device__ bool edit(float *logits, const Choice &c, const int2 *edits) {
  bool fine = true;
  for (int i = threadIdx.x; i < c.n_seen; i += THREADS) {
    int2 seen = edits[c.first_edit + i];
    float l = logits[seen.x];
    fine &= isfinite(l);
    l = l > 0.f ? l / c.repetition : l * c.repetition;
    if (seen.y > 0) l -= __fadd_rn(c.presence, __fmul_rn(c.frequency, (float)seen.y));
    logits[seen.x] = l;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < c.n_forbidden; i += THREADS) {
    int id = edits[c.first_edit + c.n_seen + i].x;
    float l = logits[id];
    fine &= isfinite(l);
    logits[id] = NEVER;
  }
  return fine;
}

// Most significant bits first by value, then by lower id.
__device__ __forceinline__ u64 order_key(float l, int id) { return (u64)value_key(l) << 32 | (unsigned)~id; }

// chosen[place] of every choice; -1 where a logit is no number.
extern "C" __global__ void __launch_bounds__(THREADS) sample(float *all_logits, const Choice *choices, const int2 *edits,
                                                           int *chosen, int vocab) {
  __shared__ Shared s;
  begin();
  Choice c = choices[blockIdx.x];
  float *logits = all_logits + (size_t)c.row * vocab;
  if (threadIdx.x == 0) s.bad = 0;
  s.count[0][threadIdx.x] = 0;
  s.mass[0][threadIdx.x] = 0;
  __syncthreads();
  if (!edit(logits, c, edits)) s.bad = 1;
  __syncthreads();

  u64 best = 0;
  float bottom = FLT_MAX;
  bool fine = true;
  each(logits, vocab, [&](float l, int id) {
    fine &= isfinite(l);
    best = max(best, order_key(l, id));
    if (l > NEVER) bottom = fminf(bottom, l);
  });
  if (!fine) s.bad = 1;
  for (int o = 16; o; o >>= 1) {
    best = max(best, __shfl_xor_sync(~0u, best, o));
    bottom = fminf(bottom, __shfl_xor_sync(~0u, bottom, o));
  }
  if (threadIdx.x % 32 == 0) s.of_warp[threadIdx.x / 32] = {best, __float_as_uint(bottom)};
  __syncthreads();
  if (threadIdx.x < 32) {
    best = s.of_warp[threadIdx.x].count;
    bottom = __uint_as_float((unsigned)s.of_warp[threadIdx.x].mass);
    for (int o = 16; o; o >>= 1) {
      best = max(best, __shfl_xor_sync(~0u, best, o));
      bottom = fminf(bottom, __shfl_xor_sync(~0u, bottom, o));
    }
    if (threadIdx.x == 0) {
      int id = (int)~(unsigned)best;
      s.found_id = id;
      s.top = logits[id];
      s.bottom = bottom;
      if (s.top <= NEVER) s.bad = 1;
    }
  }
  __syncthreads();
  if (s.bad || c.temperature == 0.f) {
    if (threadIdx.x == 0) chosen[c.place] = s.bad ? -1 : s.found_id;
    return;
  }

  float range = s.top - s.bottom;
  Row row = {logits, vocab, s.top, range > 0.f ? (BINS - 1) / range : 0.f, c.temperature};
  bool sorted = c.top_k > 0 || c.top_p < 1.f || c.min_p > 0.f;
  Sums own = {0, 0};
  each(logits, vocab, [&](float l, int) {
    if (l <= NEVER) return;
    u64 weight = row.weight(l);
    own = own + Sums{1, weight};
    if (sorted) {
      int bin = row.bin(l);
      atomicAdd(&s.count[0][bin], 1u);
      atomicAdd(&s.mass[0][bin], weight);
    }
  });
  Sums through = scan_block(own, s);
  if (threadIdx.x == THREADS - 1) s.before = through;
  __syncthreads();
  Sums total = s.before;
  __syncthreads();
  if (!sorted) {
    walk(row, s, mass_goal(c.draw, total.mass, 1), {0, 0}, [](float l) { return l > NEVER; });
    if (threadIdx.x == 0) chosen[c.place] = s.found_id;
    return;
  }
  // What is left is always a beginning of the order: up to the token last located.
  u64 left = total.mass;
  float last_value = NEVER;
  int last_id = vocab;
  auto cut = [&](Goal goal) {
    locate(row, s, goal);
    left = s.found_through.mass;
    last_value = s.found_value;
    last_id = s.found_id;
    __syncthreads();
  };
  if (c.top_k > 0 && c.top_k < total.count) cut({true, (u64)c.top_k});
  if (c.top_p < 1.f) {
    double share = c.top_p * (double)left;
    u64 amount = (u64)ceil(share);
    cut({false, min(max(amount, 1ull), left)});
  }
  if (c.min_p > 0.f) {
    u64 least = (u64)ceil((double)c.min_p * UNIT);
    Sums kept = {0, 0};
    each(logits, vocab, [&](float l, int id) {
      if (l > NEVER && (l > last_value || (l == last_value && id <= last_id))) {
        u64 weight = row.weight(l);
        if (weight >= least) kept = kept + Sums{1, weight};
      }
    });
    through = scan_block(kept, s);
    if (threadIdx.x == THREADS - 1) s.before = through;
    __syncthreads();
    left = s.before.mass;
    __syncthreads();
  }
  cut(mass_goal(c.draw, left, 1));
  if (threadIdx.x == 0) chosen[c.place] = last_id;
}
