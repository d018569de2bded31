// The fused activations and their gradients, a vector at a time.
#pragma once

#include <math.h>

#include "vec.h"

namespace bunit::BUNIT_ISA {

// A comparison is written so that NaN takes the branch that returns it, as the instruction does of
// its second operand. (A comparison with zero GCC makes two instructions of.)
template <class T>
BUNIT_INLINE Vec<T> max0(Vec<T> x) {
  const Vec<T> zero{};
#if BUNIT_VECTOR_BYTES == 64  // as masked, or GCC 12 warns of its own header
  if constexpr (sizeof(T) == 8) {
    return (Vec<T>)_mm512_maskz_max_pd(__mmask8(kAllLanes), (__m512d)zero, (__m512d)x);
  } else {
    return (Vec<T>)_mm512_maskz_max_ps(kAllLanes, (__m512)zero, (__m512)x);
  }
#elif BUNIT_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 8) {
    return (Vec<T>)_mm256_max_pd((__m256d)zero, (__m256d)x);
  } else {
    return (Vec<T>)_mm256_max_ps((__m256)zero, (__m256)x);
  }
#else
  return zero > x ? zero : x;
#endif
}
template <class T>
BUNIT_INLINE Vec<T> min6(Vec<T> x) {
  const Vec<T> six = splat<T>(6);
  return x > six ? six : x;
}

BUNIT_INLINE float exp_(float x) { return expf(x); }
BUNIT_INLINE double exp_(double x) { return exp(x); }
BUNIT_INLINE float erf_(float x) { return erff(x); }
BUNIT_INLINE double erf_(double x) { return erf(x); }

// The activations that need the C library, a lane at a time.
template <class T>
__attribute__((noinline)) void activate_lanes(Activation name, T* lanes) {
  for (int i = 0; i < kLanes<T>; ++i) {
    const T x = lanes[i];
    lanes[i] = name == Activation::gelu ? x * T(0.5) * (1 + erf_(x * T(0.70710678118654752440)))
                                        : x / (1 + exp_(-x));
  }
}

template <class T>
BUNIT_INLINE Vec<T> activate(Activation name, Vec<T> x) {
  switch (name) {
    case Activation::identity:
      return x;
    case Activation::relu:
      return max0<T>(x);
    case Activation::relu6:
      return min6<T>(max0<T>(x));
    case Activation::leaky_relu:
      return x > Vec<T>{} ? x : x * T(0.01);
    case Activation::hardswish:
      return x * min6<T>(max0<T>(x + T(3))) / T(6);
    default: {
      T lanes[kLanes<T>];
      memcpy(lanes, &x, sizeof(x));
      activate_lanes<T>(name, lanes);
      memcpy(&x, lanes, sizeof(x));
      return x;
    }
  }
}

template <class T>
__attribute__((noinline)) void derive_lanes(Activation name, T* lanes) {
  for (int i = 0; i < kLanes<T>; ++i) {
    const T x = lanes[i];
    if (name == Activation::gelu) {
      const T density = T(0.39894228040143267794) * exp_(T(-0.5) * x * x);
      lanes[i] = T(0.5) * (1 + erf_(x * T(0.70710678118654752440))) + x * density;
    } else {
      const T s = 1 / (1 + exp_(-x));
      lanes[i] = s * (1 + x * (1 - s));
    }
  }
}

// grad * activation'(x); where the derivative is 0 the gradient is dropped, be it NaN or not, as
// PyTorch's backward operators do.
template <class T>
BUNIT_INLINE Vec<T> activation_grad(Activation name, Vec<T> x, Vec<T> grad) {
  const Vec<T> zero{};
  switch (name) {
    case Activation::identity:
      return grad;
    case Activation::relu:
      return x <= zero ? zero : grad;
    case Activation::relu6: {
      const Vec<T> low = x <= zero ? zero : grad;
      return x >= splat<T>(6) ? zero : low;
    }
    case Activation::leaky_relu:
      return x > zero ? grad : grad * T(0.01);
    case Activation::hardswish: {
      const Vec<T> three = splat<T>(3);
      const Vec<T> middle = grad * (x / T(3) + T(0.5));
      const Vec<T> low = x <= -three ? zero : middle;
      return x >= three ? grad : low;
    }
    default: {
      T lanes[kLanes<T>];
      memcpy(lanes, &x, sizeof(x));
      derive_lanes<T>(name, lanes);
      memcpy(&x, lanes, sizeof(x));
      return grad * x;
    }
  }
}

}  // namespace bunit::BUNIT_ISA
