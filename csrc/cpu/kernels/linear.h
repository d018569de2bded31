// All levels of linear units over rows of features, and their backward pass.
//
// Rows are worked on a block at a time, whose planes (a channel each, a row a lane) stay in the
// cache from the first level to the last and back. Planes hold whole vectors. The lanes beyond the
// last row are zero: sums over rows need not look where rows end, and what is left there of earlier
// calls, subnormal numbers for instance, costs twenty times an ordinary number's time.
// Weights are broadcast from where they lie: tiny units are not worth packing.
#pragma once

#include "conv_flat.h"
#include "stage.h"

namespace bunit::BUNIT_ISA {

constexpr int kRowVectors = BUNIT_REGISTERS == 32 ? 4 : 2;  // at a time, beside kBlock channels

// A level's weight or its transpose: element (channel, tap) at channel * channel_step + tap *
// tap_step.
template <class T>
struct WeightView {
  const T* data;
  int64_t channel_step, tap_step;
};

// out[c][p] = activation(bias[c] + sum over taps of weight(c, t) * in[t][p]), planes `plane` apart.
template <class T>
struct LinearMap {
  const T* in;
  int64_t plane;
  int taps;
  WeightView<T> weights;
  const T* bias;  // or null
  Activation activation;

  void run(int channels, int64_t vectors, T* out) const {
    for (int c = 0; c < channels; c += kBlock) {
      switch (channels - c) {
        case 1:
          run_channels<1>(c, vectors, out + c * plane);
          break;
        case 2:
          run_channels<2>(c, vectors, out + c * plane);
          break;
        case 3:
          run_channels<3>(c, vectors, out + c * plane);
          break;
        default:
          run_channels<4>(c, vectors, out + c * plane);
      }
    }
    if (activation == Activation::identity || activation == Activation::relu) return;
    for (int c = 0; c < channels; ++c) {
      activate_in_place(activation, out + c * plane, vectors * kLanes<T>);
    }
  }

  template <int Channels>
  void run_channels(int c, int64_t vectors, T* out) const {
    constexpr int kStrip = Channels > 2 ? kRowVectors : 2 * kRowVectors;
    int64_t v = 0;
    for (; v + kStrip <= vectors; v += kStrip) strip<Channels, kStrip>(c, v * kLanes<T>, out);
    for (; v + 2 <= vectors; v += 2) strip<Channels, 2>(c, v * kLanes<T>, out);
    if (v < vectors) strip<Channels, 1>(c, v * kLanes<T>, out);
  }

  template <int Channels, int Strip>
  BUNIT_INLINE void strip(int c0, int64_t p, T* out) const {
    Vec<T> acc[Channels][Strip];
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < Strip; ++i) acc[c][i] = bias ? splat<T>(bias[c0 + c]) : Vec<T>{};
    }
    const T* source = in + p;
    const T* weight = weights.data + c0 * weights.channel_step;
    for (int t = 0; t < taps; ++t, source += plane, weight += weights.tap_step) {
      Vec<T> w[Channels];
#pragma GCC unroll 16
      for (int c = 0; c < Channels; ++c) w[c] = splat<T>(weight[c * weights.channel_step]);
#pragma GCC unroll 16
      for (int i = 0; i < Strip; ++i) {
        const Vec<T> x = load(source + i * kLanes<T>);
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) acc[c][i] += w[c] * x;
      }
    }
    const bool relu = activation == Activation::relu;
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < Strip; ++i) {
        store(out + c * plane + p + i * kLanes<T>, relu ? max0<T>(acc[c][i]) : acc[c][i]);
      }
    }
  }
};

// out[c][t] += sum over rows of grad[c] * in[t], of whole vectors.
template <class T>
struct RowSums {
  const T* grad;
  const T* in;
  int64_t plane;
  int taps;
  int64_t size;  // elements: whole vectors

  void run(int channels, T* out) const {
    for (int c = 0; c < channels; c += kBlock) {
      const T* g = grad + c * plane;
      T* o = out + int64_t(c) * taps;
      switch (channels - c) {
        case 1:
          run_channels<1>(g, o);
          break;
        case 2:
          run_channels<2>(g, o);
          break;
        case 3:
          run_channels<3>(g, o);
          break;
        default:
          run_channels<4>(g, o);
      }
    }
  }

  template <int Channels>
  void run_channels(const T* g, T* out) const {
    int t = 0;
    for (; t + kRowVectors <= taps; t += kRowVectors) block<Channels, kRowVectors>(g, t, out);
    for (; t < taps; ++t) block<Channels, 1>(g, t, out);
  }

  template <int Channels, int Taps>
  BUNIT_INLINE void block(const T* g, int first, T* out) const {
    Vec<T> acc[Channels][Taps] = {};
    const T* x = in + first * plane;
    for (int64_t p = 0; p < size; p += kLanes<T>) {
      Vec<T> v[Channels];
#pragma GCC unroll 16
      for (int c = 0; c < Channels; ++c) v[c] = load(g + c * plane + p);
#pragma GCC unroll 16
      for (int t = 0; t < Taps; ++t) {
        const Vec<T> value = load(x + t * plane + p);
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) acc[c][t] += v[c] * value;
      }
    }
    T sums[Channels * Taps];
    sum_each<T>(&acc[0][0], Channels * Taps, sums);
    for (int c = 0; c < Channels; ++c) {
      for (int t = 0; t < Taps; ++t) out[c * taps + first + t] += sums[c * Taps + t];
    }
  }
};

// out[c] += sum over rows of planes[c].
template <class T>
void add_row_sums(const T* planes, int64_t plane, int channels, int64_t size, T* out) {
  constexpr int kFew = 4;
  for (int first = 0; first < channels; first += kFew) {
    const int count = channels - first < kFew ? channels - first : kFew;
    Vec<T> totals[kFew] = {};
    for (int c = 0; c < count; ++c) {
      const T* from = planes + (first + c) * plane;
      for (int64_t p = 0; p < size; p += kLanes<T>) totals[c] += load(from + p);
    }
    T sums[kFew];
    sum_each<T>(totals, kFew, sums);
    for (int c = 0; c < count; ++c) out[first + c] += sums[c];
  }
}

// Zeroes the lanes beyond the last of `rows` rows.
template <class T>
void clear_beyond(int64_t rows, T* planes, int64_t plane, int64_t channels) {
  const int64_t rest = rows % kLanes<T>;
  if (rest == 0) return;
  const Mask<T> valid = first_lanes<T>(rest);
  T* last = planes + rows - rest;
  for (int64_t c = 0; c < channels; ++c, last += plane) store(last, keep<T>(load(last), valid));
}

// Activations whose derivative their output does not tell.
BUNIT_INLINE bool derives_from_input(Activation name) {
  return name == Activation::gelu || name == Activation::silu || name == Activation::hardswish;
}

// One unit over the rows of one block.
template <class T>
struct LinearRows {
  const LinearCall& call;
  const LinearUnit& unit;
  int64_t rows;
  T* memory;  // planes to take

  int64_t vectors() const { return (rows + kLanes<T> - 1) / kLanes<T>; }
  int64_t size() const { return vectors() * kLanes<T>; }
  Activation activation(int level) const {
    return level == call.depth - 1 ? call.out : call.hidden;
  }
  T* take(int channels) {
    T* planes = memory;
    memory += channels * call.plane;
    return planes;
  }

  void map(int l, const T* in, Activation activation, T* out) const {
    const T* weight = static_cast<const T*>(call.weights[l]) + unit.weights[l];
    const T* bias = static_cast<const T*>(call.biases[l]);
    if (bias) bias += unit.biases[l];
    const int taps = unit.widths[l];
    LinearMap<T>{in, call.plane, taps, {weight, taps, 1}, bias, activation}.run(unit.widths[l + 1],
                                                                                vectors(), out);
  }
  void map_back(int l, const T* grad, T* out) const {
    const T* weight = static_cast<const T*>(call.weights[l]) + unit.weights[l];
    const int channels = unit.widths[l], taps = unit.widths[l + 1];
    LinearMap<T>{grad, call.plane, taps, {weight, 1, channels}, nullptr, Activation::identity}.run(
        channels, vectors(), out);
  }

  void forward(const T* x, T* y) {
    for (int l = 0; l < call.depth; ++l) {
      T* out = l == call.depth - 1 ? y : take(unit.widths[l + 1]);
      map(l, x, activation(l), out);
      x = out;
    }
  }

  // From x and the gradient of the output, in place: the gradients before the last activation, and
  // of x. Adds those of weights and biases to `sums`.
  void backward(T* x, T* grad, T* sums) {
    const T* inputs[kLevels];
    const T* kept[kLevels];  // what tells a level's activation its derivative
    recompute(x, inputs, kept);
    for (int l = call.depth - 1; l >= 0; --l) {
      const int c_in = unit.widths[l], c_out = unit.widths[l + 1];
      differentiate(activation(l), kept[l], c_out, grad);
      T* to = sums + call.weight_sums[l] + unit.weights[l];
      RowSums<T>{grad, inputs[l], call.plane, c_in, size()}.run(c_out, to);
      if (call.biases[l]) {
        add_row_sums(grad, call.plane, c_out, size(), sums + call.bias_sums[l] + unit.biases[l]);
      }
      T* before = l == 0 ? x : take(c_in);
      map_back(l, grad, before);
      grad = before;
    }
  }

  void recompute(const T* x, const T** inputs, const T** kept) {
    for (int l = 0; l < call.depth; ++l) {
      inputs[l] = x;
      kept[l] = nullptr;
      const Activation name = activation(l);
      const int channels = unit.widths[l + 1];
      if (l == call.depth - 1) {
        if (name == Activation::identity) return;
        T* z = take(channels);
        map(l, x, Activation::identity, z);
        kept[l] = z;
        return;
      }
      T* y = take(channels);
      map(l, x, derives_from_input(name) ? Activation::identity : name, y);
      kept[l] = y;
      if (derives_from_input(name)) {
        T* z = y;
        y = take(channels);
        for (int c = 0; c < channels; ++c) {
          copy_row(z + c * call.plane, y + c * call.plane, size());
          activate_in_place(name, y + c * call.plane, size());
        }
      }
      clear_beyond(rows, y, call.plane, channels);
      x = y;
    }
  }

  void differentiate(Activation name, const T* kept, int channels, T* grad) const {
    if (name == Activation::identity) return;
    for (int c = 0; c < channels; ++c) {
      const T* k = kept + c * call.plane;
      T* g = grad + c * call.plane;
      for (int64_t p = 0; p < size(); p += kLanes<T>) {
        store(g + p, activation_grad<T>(name, load(k + p), load(g + p)));
      }
    }
    clear_beyond(rows, grad, call.plane, channels);
  }
};

// Rows of one part, units [first, last).
template <class T>
void linear_item(const LinearCall& call, int64_t part, int64_t first, int64_t last, void* scratch) {
  const LinearUnit &begin = call.units[first], &end = call.units[last - 1];
  const int64_t in = end.in_channel + end.widths[0] - begin.in_channel;
  const int64_t out = end.out_channel + end.widths[call.depth] - begin.out_channel;
  T* const x = static_cast<T*>(scratch);
  T* const y = x + call.in_channels * call.plane;
  T* const memory = y + call.out_channels * call.plane;
  T* const sums = static_cast<T*>(call.sums) + part * call.sums_size;
  const int64_t row1 = at_most((part + 1) * call.part, call.x.h);
  for (int64_t row = part * call.part; row < row1; row += call.block) {
    const int64_t rows = at_most(call.block, row1 - row);
    const auto offset = [&](const Image& image, int64_t channel) {
      return row * image.stride_h + channel;
    };
    const int64_t x0 = offset(call.x, begin.in_channel), y0 = offset(call.y, begin.out_channel);
    to_planes(call.x, x0, call.x.stride_h, rows, in, x, call.plane);
    clear_beyond(rows, x, call.plane, in);
    if (call.grad_x.data) {
      to_planes(call.y, y0, call.y.stride_h, rows, out, y, call.plane);
      clear_beyond(rows, y, call.plane, out);
    }
    for (int64_t u = first; u < last; ++u) {
      const LinearUnit& unit = call.units[u];
      LinearRows<T> unit_rows{call, unit, rows, memory};
      T* unit_x = x + (unit.in_channel - begin.in_channel) * call.plane;
      T* unit_y = y + (unit.out_channel - begin.out_channel) * call.plane;
      if (call.grad_x.data) {
        unit_rows.backward(unit_x, unit_y, sums);
      } else {
        unit_rows.forward(unit_x, unit_y);
      }
    }
    if (call.grad_x.data) {
      from_planes(call.grad_x, x0, call.grad_x.stride_h, rows, in, x, call.plane);
    } else {
      from_planes(call.y, y0, call.y.stride_h, rows, out, y, call.plane);
    }
  }
}

}  // namespace bunit::BUNIT_ISA
