// Passes over images whose pixels lie dense: norm, activation and residual; the norm's sums.
#pragma once

#include "stage.h"

namespace bunit::BUNIT_ISA {

// Works on `Inputs` images at once, some pixels of some channels at a time, as rows of one channel
// each. body(channel, rows, count) may write to the rows and to a vector beyond them; the first row
// is written to `out` afterwards, where that holds data.
template <class T, int Inputs, class F>
void for_each_row(const Image (&images)[Inputs], const Image& out, int64_t n, int64_t c0,
                  int64_t c1, F body) {
  constexpr int kChannels = 16, kPixels = 256;
  T tiles[Inputs][kChannels * kPixels];
  const Image& shape = images[0];
  const int64_t pixels = shape.h * shape.w;
  for (int64_t p = 0; p < pixels; p += kPixels) {
    const int64_t count = at_most(kPixels, pixels - p);
    for (int64_t first = c0; first < c1; first += kChannels) {
      const int64_t channels = at_most(kChannels, c1 - first);
      const auto at = [&](const Image& image, int64_t c) {
        return n * image.stride_n + c * image.stride_c + p * image.stride_w;
      };
      for (int i = 0; i < Inputs; ++i) {
        const Image& image = images[i];
        if (!image.data) continue;
        if (is_interleaved(image)) {
          to_planes(image, at(image, first), image.stride_w, count, channels, tiles[i], kPixels);
          continue;
        }
        for (int64_t c = 0; c < channels; ++c) {
          read_row(image, at(image, first + c), image.stride_w, tiles[i] + c * kPixels, count);
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        T* rows[Inputs];
        for (int i = 0; i < Inputs; ++i) rows[i] = tiles[i] + c * kPixels;
        body(first + c, rows, count);
      }
      if (!out.data) continue;
      if (is_interleaved(out)) {
        from_planes(out, at(out, first), out.stride_w, count, channels, tiles[0], kPixels);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        write_row(out, at(out, first + c), out.stride_w, tiles[0] + c * kPixels, count);
      }
    }
  }
}

// Channels [c0, c1) of image n.
template <class T>
void affine_item(const AffineCall& call, int64_t n, int64_t c0, int64_t c1) {
  const Image images[] = {call.z, call.residual};
  for_each_row<T>(images, call.y, n, c0, c1, [&](int64_t c, T* const(&rows)[2], int64_t count) {
    normalise_row(call.norm, c, call.activation, rows[0], count);
    if (!call.residual.data) return;
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      store(rows[0] + i, activate<T>(call.after_residual, load(rows[0] + i) + load(rows[1] + i)));
    }
  });
}

template <class T>
void reduce_item(const ReduceCall& call, int64_t n, int64_t c0, int64_t c1) {
  double* all = call.sums + 2 * n * call.z.c;
  for (int64_t c = c0; c < c1; ++c) all[2 * c] = all[2 * c + 1] = 0;
  const Image images[] = {call.grad, call.z};
  for_each_row<T>(images, {}, n, c0, c1, [&](int64_t c, T* const(&rows)[2], int64_t count) {
    const Vec<T> mean = splat(static_cast<const T*>(call.norm.mean)[c]);
    const Vec<T> scale = splat(static_cast<const T*>(call.norm.scale)[c]);
    const Vec<T> shift = splat(static_cast<const T*>(call.norm.shift)[c]);
    Vec<T> first{}, second{};
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const Mask<T> valid = first_lanes<T>(count - i);
      const Vec<T> d = load(rows[1] + i) - mean;
      const Vec<T> g =
          keep<T>(activation_grad<T>(call.activation, d * scale + shift, load(rows[0] + i)), valid);
      first += g;
      second += g * keep<T>(d, valid);
    }
    all[2 * c] += double(sum<T>(first));
    all[2 * c + 1] += double(sum<T>(second)) * double(static_cast<const T*>(call.inv_std)[c]);
  });
}

}  // namespace bunit::BUNIT_ISA
