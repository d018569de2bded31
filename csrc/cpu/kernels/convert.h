// Between the dtypes of tensors and the compute type T, on rows of any stride.
#pragma once

#include "vec.h"

namespace bunit::BUNIT_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

BUNIT_INLINE float as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
BUNIT_INLINE uint32_t as_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

BUNIT_INLINE float widen(float v) { return v; }
BUNIT_INLINE double widen(double v) { return v; }
BUNIT_INLINE float widen(BFloat16 v) { return as_float(uint32_t(v.bits) << 16); }
BUNIT_INLINE float widen(Float16 v) {
  // The exponent and mantissa in a float's place are 2^-112 of the value; an all-ones exponent
  // becomes a float's.
  const uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16;
  return as_float(as_bits(as_float(magnitude) * 0x1p112f) | special | sign);
}

template <class S>
struct Narrow;
template <>
struct Narrow<float> {
  static BUNIT_INLINE float of(float v) { return v; }
};
template <>
struct Narrow<double> {
  static BUNIT_INLINE double of(double v) { return v; }
};
template <>
struct Narrow<BFloat16> {  // to nearest, ties to even
  static BUNIT_INLINE BFloat16 of(float v) {
    const uint32_t bits = as_bits(v);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
  }
};
template <>
struct Narrow<Float16> {  // to nearest, ties to even
  static BUNIT_INLINE Float16 of(float v) {
    const uint32_t bits = as_bits(v);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Subnormal results: adding 1/2 leaves the value's bits, rounded, at the end of the mantissa.
    const uint32_t small = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t finite = magnitude < 0x38800000u ? small : normal;
    const uint32_t capped = magnitude >= 0x477ff000u ? 0x7c00u : finite;
    const uint32_t result = magnitude > 0x7f800000u ? 0x7e00u : capped;
    return {uint16_t(result | sign)};
  }
};

// Rows are short: copied in place, without a call of memcpy.
template <class T>
BUNIT_INLINE void copy_row(const T* source, T* target, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(target + i, load(source + i));
  if (i == n) return;
  if (n > kLanes<T>) return store(target + n - kLanes<T>, load(source + n - kLanes<T>));
  for (; i < n; ++i) target[i] = source[i];
}

// The same around the caches, of whole vectors.
template <class T>
BUNIT_INLINE void copy_around(const T* source, T* target, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<T>) store_around(target + i, load(source + i));
}

BUNIT_INLINE void read_as(const float* source, float* target, int64_t n) {
  copy_row(source, target, n);
}
BUNIT_INLINE void read_as(const double* source, double* target, int64_t n) {
  copy_row(source, target, n);
}
template <class S>
BUNIT_INLINE void read_as(const S* source, float* target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] = widen(source[i]);
}

template <class T, class S>
BUNIT_INLINE void read_as(const S* source, int64_t stride, T* target, int64_t n) {
  if (stride == 1) return read_as(source, target, n);
  if (stride == 2) {  // told to the compiler, it takes whole vectors and keeps every other value
    for (int64_t i = 0; i < n; ++i) target[i] = widen(source[i * 2]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) target[i] = widen(source[i * stride]);
}

BUNIT_INLINE void write_as(const float* source, float* target, int64_t n) {
  copy_row(source, target, n);
}
BUNIT_INLINE void write_as(const double* source, double* target, int64_t n) {
  copy_row(source, target, n);
}
template <class S>
BUNIT_INLINE void write_as(const float* source, S* target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] = Narrow<S>::of(source[i]);
}

template <class T, class S>
BUNIT_INLINE void write_as(const T* source, S* target, int64_t stride, int64_t n) {
  if (stride == 1) return write_as(source, target, n);
  for (int64_t i = 0; i < n; ++i) target[i * stride] = Narrow<S>::of(source[i]);
}

// `n` elements of `image`, from element `offset` on and `stride` apart. T is double exactly where
// the image is float64.
BUNIT_INLINE void read_row(const Image& image, int64_t offset, int64_t stride, double* target,
                           int64_t n) {
  read_as(static_cast<const double*>(image.data) + offset, stride, target, n);
}
BUNIT_INLINE void read_row(const Image& image, int64_t offset, int64_t stride, float* target,
                           int64_t n) {
  switch (image.dtype) {
    case Scalar::bfloat16:
      return read_as(static_cast<const BFloat16*>(image.data) + offset, stride, target, n);
    case Scalar::float16:
      return read_as(static_cast<const Float16*>(image.data) + offset, stride, target, n);
    default:
      return read_as(static_cast<const float*>(image.data) + offset, stride, target, n);
  }
}

BUNIT_INLINE void write_row(const Image& image, int64_t offset, int64_t stride,
                            const double* source, int64_t n) {
  double* data = static_cast<double*>(const_cast<void*>(image.data));
  write_as(source, data + offset, stride, n);
}
BUNIT_INLINE void write_row(const Image& image, int64_t offset, int64_t stride, const float* source,
                            int64_t n) {
  void* data = const_cast<void*>(image.data);
  switch (image.dtype) {
    case Scalar::bfloat16:
      return write_as(source, static_cast<BFloat16*>(data) + offset, stride, n);
    case Scalar::float16:
      return write_as(source, static_cast<Float16*>(data) + offset, stride, n);
    default:
      return write_as(source, static_cast<float*>(data) + offset, stride, n);
  }
}

}  // namespace bunit::BUNIT_ISA
