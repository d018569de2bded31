// What is done to a row of pixels on its way, a vector at a time. What can be decided once for a
// channel is decided before: per row it would take longer than the arithmetic.
#pragma once

#include "activations.h"
#include "convert.h"

namespace bunit::BUNIT_ISA {

// A whole vector, or the first lanes of one and zeros.
struct LoadWhole {
  template <class T>
  BUNIT_INLINE Vec<T> operator()(const T* p) const {
    return load(p);
  }
};
struct LoadFirst {
  int64_t count;
  template <class T>
  BUNIT_INLINE Vec<T> operator()(const T* p) const {
    return load_first(p, count);
  }
};

// target[i] = value(load_at, i) for `n` elements, in vectors from i on that load_at(pointer) reads.
// `target` must not be what is read: some elements are made twice. `around` the caches only whole
// vectors of aligned memory.
template <class T, class F>
BUNIT_INLINE void map_row(int64_t n, T* target, F value, bool around = false) {
  int64_t i = 0;
  if (around) {
    for (; i < n; i += kLanes<T>) store_around(target + i, value(LoadWhole{}, i));
    return;
  }
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(target + i, value(LoadWhole{}, i));
  if (i == n) return;
  if (i > 0) return store(target + n - kLanes<T>, value(LoadWhole{}, n - kLanes<T>));
  store_first(target, value(LoadFirst{n}, int64_t(0)), n);
}

// Calls use(f), f(v) being the activation of a vector; those of most layers are told the compiler.
template <class T, class F>
BUNIT_INLINE void with_activation(Activation name, F use) {
  switch (name) {
    case Activation::identity:
      return use([](Vec<T> v) BUNIT_ALWAYS { return v; });
    case Activation::relu:
      return use([](Vec<T> v) BUNIT_ALWAYS { return max0<T>(v); });
    default:
      return use([name](Vec<T> v) BUNIT_ALWAYS { return activate<T>(name, v); });
  }
}

// The same of f(v, grad), the activation's gradient at v.
template <class T, class F>
BUNIT_INLINE void with_activation_grad(Activation name, F use) {
  switch (name) {
    case Activation::identity:
      return use([](Vec<T>, Vec<T> grad) BUNIT_ALWAYS { return grad; });
    case Activation::relu:
      return use([](Vec<T> v, Vec<T> grad)
                     BUNIT_ALWAYS { return activation_grad<T>(Activation::relu, v, grad); });
    default:
      return use([name](Vec<T> v, Vec<T> grad)
                     BUNIT_ALWAYS { return activation_grad<T>(name, v, grad); });
  }
}

template <class T>
BUNIT_INLINE Vec<T> value_of(const void* values, int64_t channel) {
  return splat(static_cast<const T*>(values)[channel]);
}

// One channel's normalisation.
template <class T>
struct ChannelNorm {
  Vec<T> mean, scale, shift;

  BUNIT_INLINE ChannelNorm(const Norm& norm, int64_t channel)
      : mean(value_of<T>(norm.mean, channel)),
        scale(value_of<T>(norm.scale, channel)),
        shift(value_of<T>(norm.shift, channel)) {}
  BUNIT_INLINE Vec<T> operator()(Vec<T> v) const { return (v - mean) * scale + shift; }
};

}  // namespace bunit::BUNIT_ISA
