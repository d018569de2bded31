// CUDA's arithmetic, memory and atomic functions as host functions.
#pragma once

#include <math.h>

#include <bit>
#include <cassert>
#include <cstdint>

#define BUNIT_MIN_MAX(T)                           \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
BUNIT_MIN_MAX(int)
BUNIT_MIN_MAX(unsigned)
BUNIT_MIN_MAX(long)
BUNIT_MIN_MAX(unsigned long)
BUNIT_MIN_MAX(long long)
BUNIT_MIN_MAX(unsigned long long)
#undef BUNIT_MIN_MAX
// The device drops a NaN beside a number, as fminf and fmaxf do.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0), 1); }
inline float normcdff(float x) { return 0.5f * erfcf(x * -0.70710678118654752f); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }

// Loads and stores with a hint.
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}

// Blocks run one after another and threads never at once: order needs no instruction.
inline void __threadfence() {}
inline void __threadfence_block() {}

// Relaxed, so that a sanitizer knows two of them from a race but takes them for no barrier.
template <typename T>
T bunit_atomic_update(T* p, auto&& update) {
  T seen, wanted;
  __atomic_load(p, &seen, __ATOMIC_RELAXED);
  do {
    wanted = update(seen);
  } while (!__atomic_compare_exchange(p, &seen, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return seen;
}
#define BUNIT_ATOMICS(T)                                                                \
  inline T atomicAdd(T* p, T value) {                                                   \
    return bunit_atomic_update(p, [=](T seen) { return seen + value; });                \
  }                                                                                     \
  inline T atomicMax(T* p, T value) {                                                   \
    return bunit_atomic_update(p, [=](T seen) { return seen < value ? value : seen; }); \
  }                                                                                     \
  inline T atomicExch(T* p, T value) {                                                  \
    return bunit_atomic_update(p, [=](T) { return value; });                            \
  }
BUNIT_ATOMICS(int)
BUNIT_ATOMICS(unsigned)
BUNIT_ATOMICS(unsigned long long)
BUNIT_ATOMICS(float)
BUNIT_ATOMICS(double)
#undef BUNIT_ATOMICS
inline unsigned atomicInc(unsigned* p, unsigned last) {
  return bunit_atomic_update(p, [=](unsigned seen) { return seen >= last ? 0 : seen + 1; });
}
