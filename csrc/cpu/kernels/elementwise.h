// Passes over images whose pixels lie dense: norm, activation and residual; the norm's sums.
#pragma once

#include "stage.h"

namespace bunit::BUNIT_ISA {

// Works on `Inputs` images at once, some pixels of some channels at a time, as rows of one channel
// each. body(channel, rows, count) fills one row more, which is written to `out` where that holds
// data.
template <class T, int Inputs, class F>
void for_each_row(const Image (&images)[Inputs], const Image& out, int64_t n, int64_t c0,
                  int64_t c1, F body) {
  constexpr int kChannels = 16, kPixels = 256;
  T tiles[Inputs + 1][kChannels * kPixels];
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
        if (image.is_interleaved()) {
          to_planes(image, at(image, first), image.stride_w, count, channels, tiles[i], kPixels);
          continue;
        }
        for (int64_t c = 0; c < channels; ++c) {
          read_row(image, at(image, first + c), image.stride_w, tiles[i] + c * kPixels, count);
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        T* rows[Inputs + 1];
        for (int i = 0; i <= Inputs; ++i) rows[i] = tiles[i] + c * kPixels;
        body(first + c, rows, count);
      }
      if (!out.data) continue;
      if (out.is_interleaved()) {
        from_planes(out, at(out, first), out.stride_w, count, channels, tiles[Inputs], kPixels);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        write_row(out, at(out, first + c), out.stride_w, tiles[Inputs] + c * kPixels, count);
      }
    }
  }
}

// Whether an image's pixels are one run of T.
template <class T>
BUNIT_INLINE bool is_plain(const Image& image) {
  return !image.data || (has_plain_rows<T>(image) && image.stride_h == image.w && image.lanes == 1);
}

// Channel c of image n.
template <class T>
BUNIT_INLINE T* pixels_of(const Image& image, int64_t n, int64_t c) {
  return static_cast<T*>(const_cast<void*>(image.data)) + offset_of(image, n, c, 0, 0);
}

// The output's pixels of channel c, from those of z and of the residual.
template <class T>
BUNIT_INLINE void affine_row(const AffineCall& call, int64_t c, int64_t count, const T* z,
                             const T* residual, T* y, bool around) {
  const ChannelNorm<T> normalised(call.norm, c);
  with_activation<T>(call.activation, [&](auto activated) BUNIT_ALWAYS {
    if (!residual) {
      const auto value = [&](auto load_at, int64_t i)
                             BUNIT_ALWAYS { return activated(normalised(load_at(z + i))); };
      return map_row(count, y, value, around);
    }
    const auto value = [&](auto load_at, int64_t i) BUNIT_ALWAYS {
      const Vec<T> sum = activated(normalised(load_at(z + i))) + load_at(residual + i);
      return activate<T>(call.after_residual, sum);
    };
    map_row(count, y, value, around);
  });
}

// Channels [c0, c1) of image n.
template <class T>
void affine_item(const AffineCall& call, int64_t n, int64_t c0, int64_t c1) {
  const bool added = call.residual.data != nullptr;
  if (is_plain<T>(call.z) && is_plain<T>(call.residual) && is_plain<T>(call.y)) {
    for (int64_t c = c0; c < c1; ++c) {
      affine_row<T>(call, c, call.z.h * call.z.w, pixels_of<T>(call.z, n, c),
                    added ? pixels_of<T>(call.residual, n, c) : nullptr, pixels_of<T>(call.y, n, c),
                    call.around);
    }
    return;
  }
  const Image images[] = {call.z, call.residual};
  for_each_row<T>(images, call.y, n, c0, c1, [&](int64_t c, T* const(&rows)[3], int64_t count) {
    affine_row<T>(call, c, count, rows[0], added ? rows[1] : nullptr, rows[2], false);
  });
}

// Adds to a channel's sums those of g and g * zhat over `count` pixels.
template <class T>
BUNIT_INLINE void reduce_row(const ReduceCall& call, int64_t c, int64_t count, const T* grad,
                             const T* z, double* sums) {
  const ChannelNorm<T> norm(call.norm, c);
  Vec<T> first{}, second{};
  with_activation_grad<T>(call.activation, [&](auto grad_at) BUNIT_ALWAYS {
    const auto add = [&](auto load_at, int64_t i, Mask<T> valid) BUNIT_ALWAYS {
      const Vec<T> d = load_at(z + i) - norm.mean;
      const Vec<T> g = keep<T>(grad_at(d * norm.scale + norm.shift, load_at(grad + i)), valid);
      first += g;
      second += g * keep<T>(d, valid);
    };
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) add(LoadWhole{}, i, ~Mask<T>{});
    if (i < count) add(LoadFirst{count - i}, i, first_lanes<T>(count - i));
  });
  sums[0] += double(sum<T>(first));
  sums[1] += double(sum<T>(second)) * double(static_cast<const T*>(call.inv_std)[c]);
}

template <class T>
void reduce_item(const ReduceCall& call, int64_t n, int64_t c0, int64_t c1) {
  constexpr int64_t kPixels = 1024;  // summed in T
  double* all = call.sums + 2 * n * call.z.c;
  for (int64_t c = c0; c < c1; ++c) all[2 * c] = all[2 * c + 1] = 0;
  if (is_plain<T>(call.grad) && is_plain<T>(call.z)) {
    const int64_t pixels = call.z.h * call.z.w;
    for (int64_t c = c0; c < c1; ++c) {
      const T *grad = pixels_of<T>(call.grad, n, c), *z = pixels_of<T>(call.z, n, c);
      for (int64_t p = 0; p < pixels; p += kPixels) {
        reduce_row<T>(call, c, at_most(kPixels, pixels - p), grad + p, z + p, all + 2 * c);
      }
    }
    return;
  }
  const Image images[] = {call.grad, call.z};
  for_each_row<T>(images, {}, n, c0, c1, [&](int64_t c, T* const(&rows)[3], int64_t count) {
    reduce_row<T>(call, c, count, rows[0], rows[1], all + 2 * c);
  });
}

}  // namespace bunit::BUNIT_ISA
