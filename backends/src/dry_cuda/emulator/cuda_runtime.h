// The part of CUDA C++ that CubeCL's kernels use, for the CPU.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "runner.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define DEFINE_VECTORS(scalar, name)                         \
  struct __align__(2 * sizeof(scalar)) name##2 {             \
    scalar x, y;                                             \
  };                                                         \
  struct name##3 {                                           \
    scalar x, y, z;                                          \
  };                                                         \
  struct __align__(4 * sizeof(scalar)) name##4 {             \
    scalar x, y, z, w;                                       \
  };
DEFINE_VECTORS(float, float)
DEFINE_VECTORS(int, int)
#undef DEFINE_VECTORS
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// The largest and the smallest of two numbers. A NaN is passed over, as on a card.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
template <class A, class B, class = std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>>>
std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(a) < C(b) ? C(b) : C(a);
}
template <class A, class B, class = std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>>>
std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return C(b) < C(a) ? C(b) : C(a);
}

inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }

// The functions that are fast and less exact on a card.
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrt(x); }

inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)(((unsigned __int128)a * b) >> 64); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

// Blocks and threads run one after another, so that nothing comes between the steps of an atomic operation. They are no races.
#define NO_RACES __attribute__((no_sanitize("thread")))
template <class T, class U>
NO_RACES T atomicAdd(T *at, U value) {
  T before = *at;
  *at = before + T(value);
  return before;
}
template <class T, class U>
NO_RACES T atomicMax(T *at, U value) {
  T before = *at;
  *at = max(before, T(value));
  return before;
}
template <class T, class U>
NO_RACES T atomicMin(T *at, U value) {
  T before = *at;
  *at = min(before, T(value));
  return before;
}
template <class T, class U>
NO_RACES T atomicExch(T *at, U value) {
  return std::exchange(*at, T(value));
}
template <class T, class U, class V>
NO_RACES T atomicCAS(T *at, U expected, V value) {
  T before = *at;
  if (before == T(expected)) {
    *at = T(value);
  }
  return before;
}

#define __syncthreads() wait_for_block(__LINE__)
#define __syncwarp() wait_for_warp(true)
#define __threadfence() \
  do {                  \
  } while (false)

// Exchanges a value between the threads of a warp: each gets that of lane `from`, or its own if there is no such lane.
template <class T>
NO_RACES T exchange(T value, int from) {
  static_assert(sizeof(T) <= 16);
  char *values = static_cast<char *>(warp_values());
  memcpy(values + 16 * lane(), &value, sizeof(T));
  wait_for_warp(false);
  if (0 <= from && from < 32 && is_running(from)) {
    memcpy(&value, values + 16 * from, sizeof(T));
  }
  wait_for_warp(false);
  return value;
}
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return exchange(value, from % 32);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return exchange(value, lane() ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned offset) {
  return exchange(value, lane() - int(offset));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned offset) {
  return exchange(value, lane() + int(offset));
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned votes = 0;
  for (int from = 0; from < 32; from++) {
    bool theirs = exchange(vote, from);
    votes |= unsigned(is_running(from) && theirs) << from;
  }
  return votes;
}
inline unsigned __activemask() {
  unsigned mask = 0;
  for (int from = 0; from < 32; from++) {
    mask |= unsigned(is_running(from)) << from;
  }
  return mask;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, !vote) == 0; }

// Calls a kernel for one thread. `arguments` holds a pointer to each argument, as for cuLaunchKernel.
template <class... A, size_t... I>
void call_kernel(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
}
template <class... A>
void call_kernel(void (*kernel)(A...), void **arguments) {
  call_kernel(kernel, arguments, std::index_sequence_for<A...>{});
}
