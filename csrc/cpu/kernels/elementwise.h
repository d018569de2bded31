// Passes over images whose pixels lie dense: norm, activation and residual; the norm's sums.
#pragma once

#include "planes.h"

namespace bunit::BUNIT_ISA {

constexpr int64_t kPixels = 512;  // at a time

// Channels [c0, c1) of image n.
template <class T>
void affine_item(const AffineCall& call, int64_t n, int64_t c0, int64_t c1) {
  T values[kPixels], added[kPixels];
  const int64_t pixels = call.z.h * call.z.w;
  for (int64_t p = 0; p < pixels; p += kPixels) {
    const int64_t count = at_most(kPixels, pixels - p);
    for (int64_t c = c0; c < c1; ++c) {
      const auto at = [&](const Image& image) {
        return n * image.stride_n + c * image.stride_c + p * image.stride_w;
      };
      read_row(call.z, at(call.z), call.z.stride_w, values, count);
      normalise_row(call.norm, c, call.activation, values, count);
      if (call.residual.data) {
        read_row(call.residual, at(call.residual), call.residual.stride_w, added, count);
        for (int64_t i = 0; i < count; i += kLanes<T>) {
          store(values + i, activate<T>(call.after_residual, load(values + i) + load(added + i)));
        }
      }
      write_row(call.y, at(call.y), call.y.stride_w, values, count);
    }
  }
}

template <class T>
void reduce_item(const ReduceCall& call, int64_t n, int64_t c0, int64_t c1) {
  T grads[kPixels], values[kPixels];
  const int64_t pixels = call.z.h * call.z.w;
  for (int64_t p = 0; p < pixels; p += kPixels) {
    const int64_t count = at_most(kPixels, pixels - p);
    for (int64_t c = c0; c < c1; ++c) {
      const auto at = [&](const Image& image) {
        return n * image.stride_n + c * image.stride_c + p * image.stride_w;
      };
      read_row(call.grad, at(call.grad), call.grad.stride_w, grads, count);
      read_row(call.z, at(call.z), call.z.stride_w, values, count);
      const Vec<T> mean = splat(static_cast<const T*>(call.norm.mean)[c]);
      const Vec<T> scale = splat(static_cast<const T*>(call.norm.scale)[c]);
      const Vec<T> shift = splat(static_cast<const T*>(call.norm.shift)[c]);
      Vec<T> first{}, second{};
      for (int64_t i = 0; i < count; i += kLanes<T>) {
        const Mask<T> valid = first_lanes<T>(count - i);
        const Vec<T> d = load(values + i) - mean;
        const Vec<T> g =
            keep<T>(activation_grad<T>(call.activation, d * scale + shift, load(grads + i)), valid);
        first += g;
        second += g * keep<T>(d, valid);
      }
      double* sums = call.sums + 2 * (n * call.z.c + c);
      if (p == 0) sums[0] = sums[1] = 0;
      sums[0] += double(sum<T>(first));
      sums[1] += double(sum<T>(second)) * double(static_cast<const T*>(call.inv_std)[c]);
    }
  }
}

}  // namespace bunit::BUNIT_ISA
