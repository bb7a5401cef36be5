// The type of weights, activations and caches. A file that includes this is compiled once for each type that it is for:
// with NUMBER_F32, NUMBER_BF16 or NUMBER_F16 defined (build.rs).
//
// f16 ends at 65504. What kernels store is that at most; NaN stays NaN. Results that cuBLASLt stores are infinite beyond
// it, so whoever reads f16 takes infinity for the largest number, as if it had been stored here.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.cuh"

using bf16 = __nv_bfloat16;
using f16 = __half;

#if defined(NUMBER_F32)
using Number = float;
#elif defined(NUMBER_BF16)
using Number = bf16;
#define NUMBER_NAME "bf16"  // in an instruction's name
#elif defined(NUMBER_F16)
using Number = f16;
#define NUMBER_NAME "f16"
#else
#error "which type?"
#endif

constexpr uint16_t F16_LARGEST = 0x7bff, F16_LEAST = 0xfbff;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) {
  return __half2float(__hmin_nan(__hmax_nan(x, __ushort_as_half(F16_LEAST)), __ushort_as_half(F16_LARGEST)));
}
template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) {
  uint16_t bits;
  asm("cvt.rn.satfinite.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return __ushort_as_half(bits);
}

__device__ __forceinline__ uint16_t bits_of(bf16 x) { return __bfloat16_as_ushort(x); }
__device__ __forceinline__ uint16_t bits_of(f16 x) { return __half_as_ushort(x); }

// Two numbers of sixteen bits in a word.
#if defined(NUMBER_BF16)
__device__ __forceinline__ uint32_t pack(float low, float high) {
  __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *(uint32_t *)&v;
}
__device__ __forceinline__ float2 unpack(uint32_t v) { return __bfloat1622float2(*(__nv_bfloat162 *)&v); }
__device__ __forceinline__ uint32_t minus(uint32_t a, uint32_t b) {
  __nv_bfloat162 d = __hsub2(*(__nv_bfloat162 *)&a, *(__nv_bfloat162 *)&b);
  return *(uint32_t *)&d;
}
__device__ __forceinline__ uint32_t times(uint32_t a, uint32_t b) {
  __nv_bfloat162 d = __hmul2(*(__nv_bfloat162 *)&a, *(__nv_bfloat162 *)&b);
  return *(uint32_t *)&d;
}
// a · b - c
__device__ __forceinline__ uint32_t times_minus(uint32_t a, uint32_t b, uint32_t c) {
  __nv_bfloat162 d = __hfma2(*(__nv_bfloat162 *)&a, *(__nv_bfloat162 *)&b, __hneg2(*(__nv_bfloat162 *)&c));
  return *(uint32_t *)&d;
}
#elif defined(NUMBER_F16)
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t v;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
__device__ __forceinline__ float2 unpack(uint32_t v) {
  __half2 least = __half2half2(__ushort_as_half(F16_LEAST)), largest = __half2half2(__ushort_as_half(F16_LARGEST));
  return __half22float2(__hmin2_nan(__hmax2_nan(*(__half2 *)&v, least), largest));
}
__device__ __forceinline__ uint32_t minus(uint32_t a, uint32_t b) {
  __half2 d = __hsub2(*(__half2 *)&a, *(__half2 *)&b);
  return *(uint32_t *)&d;
}
__device__ __forceinline__ uint32_t times(uint32_t a, uint32_t b) {
  __half2 d = __hmul2(*(__half2 *)&a, *(__half2 *)&b);
  return *(uint32_t *)&d;
}
// a · b - c
__device__ __forceinline__ uint32_t times_minus(uint32_t a, uint32_t b, uint32_t c) {
  __half2 d = __hfma2(*(__half2 *)&a, *(__half2 *)&b, __hneg2(*(__half2 *)&c));
  return *(uint32_t *)&d;
}
#endif
