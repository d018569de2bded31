// Gradients of one level: of its weights, of its input, and through the norms on both sides.
#pragma once

#include "conv_core.h"
#include "planes.h"

namespace bunit::BUNIT_ISA {

template <class T>
BUNIT_INLINE Vec<T> value_of(const void* values, int64_t channel) {
  return splat(static_cast<const T*>(values)[channel]);
}

// The gradient of a level's convolution output, from that after its norm and activation.
template <class T>
struct ReadThroughNorm {
  static constexpr bool kPlain = false;
  const BackwardCall& call;
  int64_t n;
  T* spare;    // a row and a vector
  T* spare_z;  // the same

  BUNIT_INLINE void operator()(int64_t c, int64_t y, int64_t x, int64_t step, T* target,
                               int64_t count) const {
    const Image &grad = call.grad, &z = call.z;
    read_row(grad, offset_of(grad, n, c, y, x), step * grad.stride_w, spare, count);
    read_row(z, offset_of(z, n, c, y, x), step * z.stride_w, spare_z, count);
    const Vec<T> mean = value_of<T>(call.out_norm.mean, c);
    const Vec<T> scale = value_of<T>(call.out_norm.scale, c);
    const Vec<T> shift = value_of<T>(call.out_norm.shift, c);
    const Vec<T> inv_std = value_of<T>(call.inv_std, c);
    const Vec<T> mean_g = value_of<T>(call.mean_g, c);
    const Vec<T> mean_gz = value_of<T>(call.mean_gz, c);
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      const Vec<T> d = load(spare_z + i) - mean;
      const Vec<T> g = activation_grad<T>(call.out_activation, d * scale + shift, load(spare + i));
      store(spare + i, scale * (g - mean_g - d * inv_std * mean_gz));
    }
    copy_row(spare, target, count);
  }
};

template <class T>
struct LevelBackward {
  const BackwardCall& call;
  const BackwardUnit& unit;
  const BackwardKind& kind;
  T *grads, *inputs, *outs, *spare, *spare_z;

  LevelBackward(const BackwardCall& call, const BackwardUnit& unit, T* scratch)
      : call(call), unit(unit), kind(*unit.kind) {
    const int64_t spare_size = at_least(kind.row, at_least(call.x.w, call.grad.w)) + kLanes<T>;
    spare = scratch;
    spare_z = spare + spare_size;
    grads = spare_z + spare_size;
    inputs = grads + kind.c_out * kind.grad_plane;
    outs = inputs + int64_t(kind.c_in) * kind.phases * kind.phases * kind.x_plane;
  }

  // Rows [y0, y1) of the output of image n; for the input's gradient, rows [y0, q1) of its phases.
  void run(int64_t n, int64_t y0, int64_t y1, int64_t q1, T* grad_weight, T* grad_bias,
           double* in_sums) {
    load_grads(n, y0, at_least(y1, q1));
    if (grad_weight) {
      load_inputs(n, y0, y1);
      const int64_t origin = kind.reach * kind.row + kind.reach;  // of row y0 in `grads`
      const int64_t flat = (y1 - y0 - 1) * kind.row + call.grad.w;
      weight_grad_flat<T>(grads + origin, kind.grad_plane, inputs, kind.x_offsets, kind.taps,
                          kind.c_out, static_cast<const typename VecOf<T>::Int*>(kind.mask), flat,
                          grad_weight + unit.weight);
      add_bias(y1 - y0, grads + origin, grad_bias + unit.out_channel);
    }
    if (call.grad_x.data && q1 > y0) input_grad(n, y0, q1, in_sums);
  }

  void load_grads(int64_t n, int64_t y0, int64_t end) {
    const PlaneMap map{kind.row, kind.grad_plane, 1, kind.reach, 1};
    const auto load = [&](const auto& reader) {
      load_planes(reader, call.grad.h, call.grad.w, has_dense_rows(call.grad), unit.out_channel,
                  kind.c_out, map, y0, y0, end + kind.reach, grads);
    };
    if (call.out_norm.mean) {
      load(ReadThroughNorm<T>{call, n, spare, spare_z});
    } else {
      load(ReadPixels{call.grad, n});
    }
  }

  void load_inputs(int64_t n, int64_t y0, int64_t y1) {
    const PlaneMap map{kind.row, kind.x_plane, call.stride, kind.pad, kind.phases};
    const auto load = [&](const auto& reader) {
      load_planes(reader, call.x.h, call.x.w, has_dense_rows(call.x), unit.in_channel, kind.c_in,
                  map, y0, y0, y1 + kind.reach, inputs);
    };
    if (call.in_norm.mean) {
      load(ReadNormalised<T>{call.x, n, call.in_norm, call.in_activation, spare});
    } else {
      load(ReadPixels{call.x, n});
    }
  }

  void add_bias(int64_t rows, const T* planes, T* grad_bias) const {
    for (int c = 0; c < kind.c_out; ++c) {
      Vec<T> total{};
      T rest = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = planes + c * kind.grad_plane + r * kind.row;
        int64_t i = 0;
        for (; i + kLanes<T> <= call.grad.w; i += kLanes<T>) total += load(row + i);
        for (; i < call.grad.w; ++i) rest += row[i];
      }
      grad_bias[c] += sum<T>(total) + rest;
    }
  }

  void input_grad(int64_t n, int64_t q0, int64_t q1, double* in_sums) {
    const int64_t* offsets = kind.grad_offsets;
    const T* weights = static_cast<const T*>(unit.weights);
    for (int py = 0; py < call.stride; ++py) {
      for (int px = 0; px < call.stride; ++px) {
        const int taps = int(kind.phase_taps[py * call.stride + px]);
        // Columns of this phase that are pixels: column j is x = j * stride + px - pad.
        const int64_t first = at_least(ceil_div(kind.pad - px, call.stride), 0);
        const int64_t last = ceil_div(call.x.w + kind.pad - px, call.stride);
        conv_flat<T>(grads, offsets, taps, weights, nullptr, kind.c_in, Activation::identity, outs,
                     kind.out_plane, (q1 - q0 - 1) * kind.row + at_least(last, 1));
        for (int c = 0; c < kind.c_in; ++c) {
          for (int64_t q = q0; q < q1; ++q) {
            const int64_t y = q * call.stride + py - kind.pad;
            if (y < 0 || y >= call.x.h || last <= first) continue;
            T* row = outs + c * kind.out_plane + (q - q0) * kind.row + first;
            const int64_t x = first * call.stride + px - kind.pad;
            write_input_grad(n, unit.in_channel + c, y, x, row, last - first, in_sums);
          }
        }
        offsets += taps;
        weights += int64_t(taps) * kind.c_in;
      }
    }
  }

  void write_input_grad(int64_t n, int64_t c, int64_t y, int64_t x, T* row, int64_t count,
                        double* in_sums) {
    const Image& out = call.grad_x;
    const T* values = row;
    if (call.in_norm.mean) {
      through_in_norm(n, c, y, row, count, in_sums + 2 * c);
      values = spare;
    }
    write_row(out, offset_of(out, n, c, y, x), call.stride * out.stride_w, values, count);
  }

  // Multiplies a row by the derivative of the activation before it, into `spare`, and adds up what
  // the norm's gradient needs. Only levels after the first have one, so the stride is 1.
  void through_in_norm(int64_t n, int64_t c, int64_t y, const T* row, int64_t count,
                       double* sums) {
    read_row(call.x, offset_of(call.x, n, c, y, 0), call.x.stride_w, spare_z, count);
    const Vec<T> mean = value_of<T>(call.in_norm.mean, c);
    const Vec<T> scale = value_of<T>(call.in_norm.scale, c);
    const Vec<T> shift = value_of<T>(call.in_norm.shift, c);
    const T inv_std = static_cast<const T*>(call.in_inv_std)[c];
    Vec<T> first{}, second{};
    const auto add = [&](int64_t i, Mask<T> valid) {
      const Vec<T> d = load(spare_z + i) - mean;
      const Vec<T> g = keep<T>(
          activation_grad<T>(call.in_activation, d * scale + shift, load(row + i)), valid);
      store(spare + i, g);
      first += g;
      second += g * keep<T>(d, valid);
    };
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) add(i, ~Mask<T>{});
    if (i < count) add(i, first_lanes<T>(count - i));
    sums[0] += double(sum<T>(first));
    sums[1] += double(sum<T>(second)) * double(inv_std);
  }
};

// Images of one block, one segment, units [first, last).
template <class T>
void backward_item(const BackwardCall& call, int64_t block, int64_t segment, int64_t first,
                   int64_t last, void* scratch) {
  const int64_t y0 = call.grad.h * segment / call.segments;
  const int64_t y1 = call.grad.h * (segment + 1) / call.segments;
  const int64_t part = block * call.segments + segment;
  T* grad_weight = call.grad_weight ? static_cast<T*>(call.grad_weight) + part * call.weight_size
                                    : nullptr;
  T* grad_bias = call.grad_bias ? static_cast<T*>(call.grad_bias) + part * call.grad.c : nullptr;
  double* in_sums = call.in_sums ? call.in_sums + part * call.x.c * 2 : nullptr;
  const int64_t n1 = at_most((block + 1) * call.block, call.x.n);
  for (int64_t u = first; u < last; ++u) {
    const BackwardUnit& unit = call.units[u];
    LevelBackward<T> level(call, unit, static_cast<T*>(scratch));
    // Input rows below the last output row's own belong to the last segment.
    const int64_t rows = (call.x.h - 1 + unit.kind->pad) / call.stride + 1;
    const int64_t q1 = segment + 1 == call.segments ? rows : at_most(y1, rows);
    for (int64_t n = block * call.block; n < n1; ++n) {
      level.run(n, y0, y1, q1, grad_weight, grad_bias, in_sums);
    }
  }
}

}  // namespace bunit::BUNIT_ISA
