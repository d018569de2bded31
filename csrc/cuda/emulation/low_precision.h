// bfloat16 and float16 of CUDA's headers: storage, conversions, packed pairs. Arithmetic on them
// computes in float and rounds once, as the device's instructions do.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>

#include "vector_types.h"

namespace bunit::emulation {

inline uint16_t bfloat16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return 0x7fff;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float bfloat16_value(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

inline uint16_t float16_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
  if (magnitude < 0x38800000) {  // subnormal: let the float adder round at the last place
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return uint16_t(sign | ((rounded - 0x38000000) >> 13));
}
inline float float16_value(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
  const float magnitude = exponent == 0 ? ldexpf(float(fraction), -24)
                                        : ldexpf(float(fraction + 1024), int(exponent) - 25);
  return sign ? -magnitude : magnitude;
}

}  // namespace bunit::emulation

// A type of 16 bits `T`, its pair, and everything CUDA names after its `tag`.
#define BUNIT_LOW_PRECISION(T, tag, pair_tag, bits_of, value_of)                       \
  struct T {                                                                           \
    T() = default;                                                                     \
    T(float value) : bits(::bunit::emulation::bits_of(value)) {}                       \
    T(double value) : T(float(value)) {}                                               \
    T(int value) : T(float(value)) {}                                                  \
    operator float() const { return ::bunit::emulation::value_of(bits); }              \
    uint16_t bits;                                                                     \
  };                                                                                   \
  struct alignas(4) T##2 { T x, y; };                                                  \
  inline float __##tag##2float(T a) { return a; }                                      \
  inline T __float2##tag(float a) { return a; }                                        \
  inline T __float2##tag##_rn(float a) { return a; }                                   \
  inline T##2 __floats2##tag##2_rn(float a, float b) { return {a, b}; }                \
  inline T##2 __float22##tag##2_rn(float2 a) { return {a.x, a.y}; }                    \
  inline float2 __##pair_tag##2float2(T##2 a) { return {a.x, a.y}; }                   \
  inline T##2 __##tag##2##pair_tag(T a) { return {a, a}; }                             \
  inline T##2 __float2##tag##2_rn(float a) { return {a, a}; }                          \
  inline T##2 __halves2##tag##2(T a, T b) { return {a, b}; }                           \
  inline T __low2##tag(T##2 a) { return a.x; }                                         \
  inline T __high2##tag(T##2 a) { return a.y; }                                        \
  inline float __low2float(T##2 a) { return a.x; }                                     \
  inline float __high2float(T##2 a) { return a.y; }                                    \
  inline T __hadd(T a, T b) { return float(a) + float(b); }                            \
  inline T __hmul(T a, T b) { return float(a) * float(b); }                            \
  inline T __hmax(T a, T b) { return fmaxf(a, b); }                                    \
  inline T __hfma(T a, T b, T c) { return float(double(a) * double(b) + double(c)); }  \
  inline T##2 __hadd2(T##2 a, T##2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; } \
  inline T##2 __hmul2(T##2 a, T##2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; } \
  inline T##2 __hmax2(T##2 a, T##2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; } \
  inline T##2 __hfma2(T##2 a, T##2 b, T##2 c) {                                        \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                             \
  }

BUNIT_LOW_PRECISION(__nv_bfloat16, bfloat16, bfloat162, bfloat16_bits, bfloat16_value)
BUNIT_LOW_PRECISION(__half, half, half2, float16_bits, float16_value)
#undef BUNIT_LOW_PRECISION

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using half = __half;
using half2 = __half2;
