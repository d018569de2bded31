// A level's gradients through the norms on both sides of it.
#pragma once

#include "planes.h"

namespace bunit::BUNIT_ISA {

// The gradient of a level's convolution output, from that after its norm and activation.
template <class T>
struct ReadThroughNorm {
  static constexpr bool kPlain = false;
  static constexpr int kSources = 2;
  const BackwardCall& call;
  int64_t n;
  T* spare;           // a row
  T* spare_z;         // the same
  int64_t shift = 0;  // from a channel of the images to that of the norm

  const Image& source(int k) const { return k == 0 ? call.grad : call.z; }

  template <class, class F>
  BUNIT_INLINE void with_channel(int64_t channel, F use) const {
    const int64_t c = channel + shift;
    const ChannelNorm<T> norm(call.out_norm, c);
    const Vec<T> mean_g = value_of<T>(call.mean_g, c);
    const Vec<T> slope = value_of<T>(call.inv_std, c) * value_of<T>(call.mean_gz, c);
    with_activation_grad<T>(call.out_activation, [&](auto grad_at) BUNIT_ALWAYS {
      use([=](Vec<T> grad, Vec<T> z) BUNIT_ALWAYS {
        const Vec<T> d = z - norm.mean;
        return norm.scale * (grad_at(d * norm.scale + norm.shift, grad) - mean_g - d * slope);
      });
    });
  }

  BUNIT_INLINE void operator()(int64_t c, int64_t y, int64_t x, int64_t step, T* target,
                               int64_t count) const {
    read_pixels(call.grad, offset_of(call.grad, n, c, y, x), step, spare, count);
    read_pixels(call.z, offset_of(call.z, n, c, y, x), step, spare_z, count);
    with_channel<T>(c, [&](auto value) BUNIT_ALWAYS {
      map_row(count * call.lanes, target, [&](auto load_at, int64_t i) BUNIT_ALWAYS {
        return value(load_at(spare + i), load_at(spare_z + i));
      });
    });
  }
};

// load_planes of the gradient of a unit's convolution outputs, from that after their norm.
template <class T>
void load_through_norm(const BackwardCall& call, const BackwardUnit& unit, int64_t n,
                       const PlaneMap& map, int64_t base, int64_t q0, int64_t q1, T* planes,
                       T* spare, T* spare_z) {
  ReadThroughNorm<T> read{call, n, spare, spare_z};
  const Image& grad = call.grad;
  const int64_t together = grad.shuffled ? 1 : unit.out.count;
  for (int64_t c = 0; c < unit.out.count; c += together) {
    const int64_t place = place_of(grad, unit.out, c);
    read.shift = unit.out.first + c - place;
    load_planes(read, grad.h, grad.w, has_dense_rows(grad), place, int(together), map, base, q0, q1,
                planes + c * map.plane);
  }
}

// Multiplies rows [y0, y1) of the input's gradient, `row` elements apart, by the derivative of the
// activation before it, writes them, and adds up what the norm's gradient needs. Only levels after
// the first have a norm before them, so the stride is 1 and rows are whole.
template <class T>
void through_in_norm(const BackwardCall& call, int64_t n, int64_t first_channel, int channels,
                     int64_t y0, int64_t y1, const T* planes, int64_t plane, int64_t row, T* spare,
                     T* spare_z, double* in_sums) {
  const Image &x = call.x, &out = call.grad_x;
  const bool plain = has_plain_rows<T>(x) && has_plain_rows<T>(out);
  const int64_t width = x.w * call.lanes, rows = y1 - y0;
  // Rows that lie end to end everywhere are gone through as one.
  const bool dense = plain && row == width && x.stride_h == width && out.stride_h == width;
  const int64_t piece = dense ? kPiece : width, total = dense ? rows * width : width;
  for (int c = 0; c < channels; ++c) {
    const int64_t channel = first_channel + c;
    const ChannelNorm<T> norm(call.in_norm, channel);
    Vec<T> first{}, second{};
    with_activation_grad<T>(call.in_activation, [&](auto grad_at) BUNIT_ALWAYS {
      const auto add = [&](const T* z, const T* grad, T* target, int64_t length) BUNIT_ALWAYS {
        const auto value = [&](auto load_at, int64_t i, Mask<T> valid) BUNIT_ALWAYS {
          const Vec<T> d = load_at(z + i) - norm.mean;
          const Vec<T> g = keep<T>(grad_at(d * norm.scale + norm.shift, load_at(grad + i)), valid);
          first += g;
          second += g * keep<T>(d, valid);
          return g;
        };
        int64_t i = 0;
        for (; i + kLanes<T> <= length; i += kLanes<T>) {
          store(target + i, value(LoadWhole{}, i, ~Mask<T>{}));
        }
        if (i == length) return;
        const int64_t rest = length - i;
        store_first(target + i, value(LoadFirst{rest}, i, first_lanes<T>(rest)), rest);
      };
      for (int64_t y = 0; y < (dense ? 1 : rows); ++y) {
        const T* grad = planes + c * plane + y * row;
        const int64_t from = offset_of(x, n, channel, y0 + y, 0),
                      to = offset_of(out, n, channel, y0 + y, 0);
        if (!plain) {
          read_pixels(x, from, 1, spare_z, x.w);
          add(spare_z, grad, spare, width);
          write_pixels(out, to, 1, spare, x.w);
          continue;
        }
        const T* z = static_cast<const T*>(x.data) + from;
        T* target = static_cast<T*>(const_cast<void*>(out.data)) + to;
        for (int64_t i = 0; i < total; i += piece) {
          const int64_t count = at_most(piece, total - i);
          prefetch(x, z + i, count * int64_t(sizeof(T)));
          add(z + i, grad + i, target + i, count);
        }
      }
    });
    in_sums[2 * channel] += double(sum<T>(first));
    in_sums[2 * channel + 1] +=
        double(sum<T>(second)) * double(static_cast<const T*>(call.in_inv_std)[channel]);
  }
}

}  // namespace bunit::BUNIT_ISA
