// Vectors of the instruction set being compiled, through the compiler's portable vector types.
// Included by one translation unit for each instruction set (BUNIT_ISA, BUNIT_VECTOR_BYTES,
// BUNIT_REGISTERS); no standard library templates in here: a linker would keep one instance of each
// for all instruction sets.
#pragma once

#include <stdint.h>
#include <string.h>

#include "calls.h"

#define BUNIT_ALWAYS __attribute__((always_inline))
#define BUNIT_INLINE inline BUNIT_ALWAYS

namespace bunit::BUNIT_ISA {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float V __attribute__((vector_size(BUNIT_VECTOR_BYTES)));
  typedef float U __attribute__((vector_size(BUNIT_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(BUNIT_VECTOR_BYTES)));
  typedef int32_t Int;
};
template <>
struct VecOf<double> {
  typedef double V __attribute__((vector_size(BUNIT_VECTOR_BYTES)));
  typedef double U __attribute__((vector_size(BUNIT_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(BUNIT_VECTOR_BYTES)));
  typedef int64_t Int;
};

template <class T>
using Vec = typename VecOf<T>::V;
template <class T>
using Mask = typename VecOf<T>::I;
template <class T>
constexpr int kLanes = BUNIT_VECTOR_BYTES / int(sizeof(T));

template <class T>
BUNIT_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::U*>(p);
}
// Lanes whose bit is set; the others are zero and not read, wherever they lie. Without AVX-512 all
// are read (kLoadsLanes).
typedef uint16_t LaneBits;
constexpr LaneBits kAllLanes = 0xffff;
constexpr bool kLoadsLanes = BUNIT_VECTOR_BYTES == 64;
template <class T>
BUNIT_INLINE Vec<T> load_lanes(const T* p, LaneBits lanes) {
#if BUNIT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) {
    return (Vec<T>)_mm512_maskz_loadu_pd(__mmask8(lanes), p);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_ps(__mmask16(lanes), p);
  }
#else
  (void)lanes;
  return load(p);
#endif
}
// All lanes but the last, one lane up, after zero; all but the first, one down, before it; of these
// zero too that are not in `kept`. (The intrinsics without a mask make GCC warn of what they leave
// undefined.) Without AVX-512 rows hold their padding (kLoadsLanes), and nobody asks.
template <class T>
BUNIT_INLINE Vec<T> zero_before(Vec<T> v, LaneBits kept = kAllLanes) {
#if BUNIT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) {
    return (Vec<T>)_mm512_maskz_alignr_epi64(__mmask8(kept), (__m512i)v, __m512i{}, 7);
  } else {
    return (Vec<T>)_mm512_maskz_alignr_epi32(kept, (__m512i)v, __m512i{}, 15);
  }
#else
  (void)kept;
  return v;
#endif
}
template <class T>
BUNIT_INLINE Vec<T> zero_after(Vec<T> v, LaneBits kept = kAllLanes) {
#if BUNIT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) {
    return (Vec<T>)_mm512_maskz_alignr_epi64(__mmask8(kept), __m512i{}, (__m512i)v, 1);
  } else {
    return (Vec<T>)_mm512_maskz_alignr_epi32(kept, __m512i{}, (__m512i)v, 1);
  }
#else
  (void)kept;
  return v;
#endif
}
template <class T>
BUNIT_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::U*>(p) = v;
}
// Around the caches, for an output larger than they are: what it would replace is of more use, and
// its old contents need not be read. `p` is aligned to a vector. Only of whole cache lines: half of
// one waits for the other, and few can.
template <class T>
BUNIT_INLINE void store_around(T* p, Vec<T> v) {
#if BUNIT_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#else
  store(p, v);
#endif
}
template <class T>
BUNIT_INLINE Vec<T> splat(T s) {
  return s - Vec<T>{};  // unlike 0 + s, the same bits for every s: no instruction
}
// sum += a * b, in place: left to itself the compiler lets a product take the place of a factor,
// and then moves it.
template <class T>
BUNIT_INLINE void add_product(Vec<T>& sum, Vec<T> a, Vec<T> b) {
#if BUNIT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) {
    asm("vfmadd231pd %1, %2, %0" : "+v"(sum) : "v"(a), "v"(b));
  } else {
    asm("vfmadd231ps %1, %2, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
#else
  sum += a * b;
#endif
}
// sum += a * b, `a` read from memory by the same instruction.
template <class T>
BUNIT_INLINE void add_scaled(Vec<T>& sum, const T& a, Vec<T> b) {
#if BUNIT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) {
    asm("vfmadd231pd %1%{1to8%}, %2, %0" : "+v"(sum) : "m"(a), "v"(b));
  } else {
    asm("vfmadd231ps %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(a), "v"(b));
  }
#else
  sum += splat<T>(a) * b;
#endif
}
template <class T>
BUNIT_INLINE Vec<T> keep(Vec<T> v, Mask<T> mask) {  // bitwise: a masked NaN is gone
  return (Vec<T>)((Mask<T>)v & mask);
}
// All ones in the first `n` lanes, or in all.
template <class T>
BUNIT_INLINE Mask<T> first_lanes(int64_t n) {
  Mask<T> lane{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < typename VecOf<T>::Int(n < kLanes<T> ? n : kLanes<T>) - Mask<T>{};
}
// The first `n` lanes, fewer than all; the others are neither read, and zero, nor written.
template <class T>
BUNIT_INLINE Vec<T> load_first(const T* p, int64_t n) {
#if BUNIT_VECTOR_BYTES == 64
  return load_lanes(p, LaneBits((1 << n) - 1));
#elif BUNIT_VECTOR_BYTES == 32
  const auto lanes = (__m256i)first_lanes<T>(n);
  if constexpr (sizeof(T) == 8) {
    return (Vec<T>)_mm256_maskload_pd(p, lanes);
  } else {
    return (Vec<T>)_mm256_maskload_ps(p, lanes);
  }
#else
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}
template <class T>
BUNIT_INLINE void store_first(T* p, Vec<T> v, int64_t n) {
#if BUNIT_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 8) {
    _mm512_mask_storeu_pd(p, __mmask8((1 << n) - 1), (__m512d)v);
  } else {
    _mm512_mask_storeu_ps(p, __mmask16((1 << n) - 1), (__m512)v);
  }
#elif BUNIT_VECTOR_BYTES == 32
  const auto lanes = (__m256i)first_lanes<T>(n);
  if constexpr (sizeof(T) == 8) {
    _mm256_maskstore_pd(p, lanes, (__m256d)v);
  } else {
    _mm256_maskstore_ps(p, lanes, (__m256)v);
  }
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}
template <class T>
BUNIT_INLINE T sum(Vec<T> v) {
  T lanes[kLanes<T>];
  memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// acc[i][j] += a(i) * b(j). The fewer of the two stay in registers and the others come one by one:
// one register more and a sum would be on the stack, each addition waiting for the last one's
// store.
template <class V, int A, int B, class LoadA, class LoadB>
BUNIT_INLINE void add_outer(LoadA a, LoadB b, V (&acc)[A][B]) {
  constexpr bool kKeepsA = A <= B;
  constexpr int kKept = kKeepsA ? A : B, kOthers = kKeepsA ? B : A;
  V kept[kKept];
#pragma GCC unroll 16
  for (int i = 0; i < kKept; ++i) kept[i] = kKeepsA ? a(i) : b(i);
#pragma GCC unroll 16
  for (int j = 0; j < kOthers; ++j) {
    const V v = kKeepsA ? b(j) : a(j);
#pragma GCC unroll 16
    for (int i = 0; i < kKept; ++i) acc[kKeepsA ? i : j][kKeepsA ? j : i] += kept[i] * v;
  }
}

// v[i] lane j becomes v[j] lane i.
template <class T>
BUNIT_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int kN = kLanes<T>;
#if defined(__clang__)
  T lanes[kN][kN], turned[kN][kN];
  memcpy(lanes, v, sizeof(v));
  for (int i = 0; i < kN; ++i) {
    for (int j = 0; j < kN; ++j) turned[j][i] = lanes[i][j];
  }
  memcpy(v, turned, sizeof(v));
#else
  // log2(N) times: interleave vector i with vector i + N / 2.
  Mask<T> low{}, high{};
#pragma GCC unroll 16
  for (int j = 0; j < kN; ++j) {
    low[j] = j / 2 + (j % 2) * kN;
    high[j] = low[j] + kN / 2;
  }
#pragma GCC unroll 4
  for (int width = 1; width < kN; width *= 2) {
    Vec<T> out[kN];
#pragma GCC unroll 16
    for (int i = 0; i < kN / 2; ++i) {
      out[2 * i] = __builtin_shuffle(v[i], v[i + kN / 2], low);
      out[2 * i + 1] = __builtin_shuffle(v[i], v[i + kN / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) v[i] = out[i];
  }
#endif
}

// Lanes of a and b by turns, of their first and of their second halves.
template <class T>
struct Halves {
  Vec<T> first, second;

  BUNIT_INLINE Halves(Vec<T> a, Vec<T> b) {
    constexpr int kN = kLanes<T>;
#if defined(__clang__)
    T lanes[2][kN], turned[2][kN];
    memcpy(lanes[0], &a, sizeof(a));
    memcpy(lanes[1], &b, sizeof(b));
    for (int i = 0; i < kN; ++i) {
      turned[0][i] = lanes[i % 2][i / 2];
      turned[1][i] = lanes[i % 2][i / 2 + kN / 2];
    }
    first = load(turned[0]);
    second = load(turned[1]);
#else
    Mask<T> low{}, high{};
#pragma GCC unroll 16
    for (int j = 0; j < kN; ++j) {
      low[j] = j / 2 + (j % 2) * kN;
      high[j] = low[j] + kN / 2;
    }
    first = __builtin_shuffle(a, b, low);
    second = __builtin_shuffle(a, b, high);
#endif
  }
};

// block[0], block[1]: half as many sums of lanes of each of kLanes vectors; two are left of each,
// that of its even and that of its odd lanes.
template <class T>
BUNIT_INLINE Halves<T> sum_pairs(Vec<T> (&block)[kLanes<T>]) {
#pragma GCC unroll 4
  for (int width = kLanes<T> / 2; width > 1; width /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      const Halves<T> halves(block[i], block[i + width]);
      block[i] = halves.first + halves.second;
    }
  }
  return {block[0], block[1]};
}

// out[i] = sum of the lanes of v[i], for `n` vectors.
template <class T>
BUNIT_INLINE void sum_each(const Vec<T>* v, int n, T* out) {
  constexpr int kN = kLanes<T>;
  for (int first = 0; first < n; first += kN) {
    Vec<T> block[kN];
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) block[i] = first + i < n ? v[first + i] : Vec<T>{};
    const Halves<T> pairs = sum_pairs<T>(block);
    const Vec<T> sums = pairs.first + pairs.second;
    const int count = n - first < kN ? n - first : kN;
    memcpy(out + first, &sums, size_t(count) * sizeof(T));
  }
}

}  // namespace bunit::BUNIT_ISA
