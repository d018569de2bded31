// Wide linear units over rows of features, and their backward pass.
//
// Where a unit's channels fill vectors, rows stay as they lie, a vector of channels a lane each:
// the transposition into planes that narrow units need (linear.h) would be for nothing, and a value
// broadcast from a row serves several vectors of weights (tiles.h). A unit's rows are copied close
// together first: in the tensor they may lie a power of two apart, which evicts one with the other.
#pragma once

#include "linear.h"
#include "tiles.h"

namespace bunit::BUNIT_ISA {

// Rows of T with `pitch` elements from one to the next.
template <class T>
struct WideRows {
  T* data;
  int64_t pitch;
};

// out[r] = activation(bias + sum over taps of in[r][t] * weights[t]), whole vectors of channels.
// `weights` are [taps][channels], `bias` may be null.
template <class T>
void map_rows(WideRows<const T> in, int64_t rows, int64_t taps, WideRows<const T> weights,
              int64_t channels, const T* bias, Activation activation, WideRows<T> out) {
  const bool relu = activation == Activation::relu;
  for_each_tile<T>(rows, channels, [&]<int Rows, int Vectors>(int64_t r, int64_t c) BUNIT_ALWAYS {
    Vec<T> acc[Rows][Vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      const Vec<T> start = bias ? load(bias + c + v * kLanes<T>) : Vec<T>{};
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) acc[m][v] = start;
    }
    add_products(in.data + r * in.pitch, in.pitch, 1, weights.data + c, weights.pitch, taps, acc);
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        store(out.data + (r + m) * out.pitch + c + v * kLanes<T>,
              relu ? max0<T>(acc[m][v]) : acc[m][v]);
      }
    }
  });
  if (activation == Activation::identity || relu) return;
  for (int64_t r = 0; r < rows; ++r) {
    activate_in_place(activation, out.data + r * out.pitch, whole_vectors<T>(channels));
  }
}

// sums[c][t] += sum over rows of grad[r][c] * in[r][t], `sums` without gaps.
template <class T>
void add_weight_grad(WideRows<const T> grad, WideRows<const T> in, int64_t rows, int64_t channels,
                     int64_t taps, T* sums) {
  for_each_tile<T>(channels, taps, [&]<int Rows, int Vectors>(int64_t c, int64_t t) BUNIT_ALWAYS {
    Vec<T> acc[Rows][Vectors] = {};
    add_products(grad.data + c, 1, grad.pitch, in.data + t, in.pitch, rows, acc);
    for (int m = 0; m < Rows; ++m) add_vectors<T>(acc[m], taps - t, sums + (c + m) * taps + t);
  });
}

// sums[c] += sum over rows of grad[r][c].
template <class T>
void add_bias_grad(WideRows<const T> grad, int64_t rows, int64_t channels, T* sums) {
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    Vec<T> total[1] = {};
    for (int64_t r = 0; r < rows; ++r) total[0] += load(grad.data + r * grad.pitch + c);
    add_vectors<T>(total, channels - c, sums + c);
  }
}

// One unit over the rows of one part. Channels are padded with zeros to whole vectors in its
// memory, and stay zero: every activation is 0 at 0.
template <class T>
struct WideUnit {
  const LinearCall& call;
  const LinearUnit& unit;
  T* memory;                       // to take
  const T* weights[kLevels];       // [c_in][padded c_out]
  const T* back_weights[kLevels];  // [c_out][padded c_in], for the backward pass
  const T* biases[kLevels];

  T* take(int64_t elements) {
    T* taken = memory;
    memory += elements;
    return taken;
  }
  int64_t pitch(int level) const { return whole_vectors<T>(unit.widths[level]); }
  WideRows<T> rows_at(int level) { return {take(call.block * pitch(level)), pitch(level)}; }
  static WideRows<const T> fixed(WideRows<T> rows) { return {rows.data, rows.pitch}; }
  Activation activation(int level) const {
    return level == call.depth - 1 ? call.out : call.hidden;
  }

  void pack() {
    const bool backward = call.grad_x.data != nullptr;
    for (int l = 0; l < call.depth; ++l) {
      const int64_t c_in = unit.widths[l], c_out = unit.widths[l + 1];
      const T* weight = static_cast<const T*>(call.weights[l]) + unit.weights[l];
      weights[l] = transposed(weight, c_in, c_out, pitch(l + 1));
      if (backward) back_weights[l] = padded(weight, c_out, c_in, pitch(l));
      const T* bias = static_cast<const T*>(call.biases[l]);
      biases[l] = bias ? padded(bias + unit.biases[l], 1, c_out, pitch(l + 1)) : nullptr;
    }
  }

  // Zeroes what lies beyond `width` in rows that are yet to be filled.
  static void clear_ends(int64_t rows, int64_t width, WideRows<T> to) {
    if (width == to.pitch) return;
    for (int64_t r = 0; r < rows; ++r) store(to.data + (r + 1) * to.pitch - kLanes<T>, Vec<T>{});
  }

  const T* transposed(const T* weight, int64_t c_in, int64_t c_out, int64_t to_pitch) {
    T* to = take(c_in * to_pitch);
    constexpr Scalar own = sizeof(T) == 8 ? Scalar::float64 : Scalar::float32;
    clear_ends(c_in, c_out, {to, to_pitch});
    to_planes(Image{weight, own}, 0, c_in, c_out, c_in, to, to_pitch);
    return to;
  }

  const T* padded(const T* rows, int64_t count, int64_t width, int64_t to_pitch) {
    if (width == to_pitch) return rows;
    T* to = take(count * to_pitch);
    clear_ends(count, width, {to, to_pitch});
    for (int64_t i = 0; i < count; ++i) copy_row(rows + i * width, to + i * to_pitch, width);
    return to;
  }

  void read(const Image& image, int64_t row, int64_t channel, int64_t rows, int width,
            WideRows<T> to) const {
    clear_ends(rows, width, to);
    for (int64_t r = 0; r < rows; ++r) {
      read_row(image, (row + r) * image.stride_h + channel, 1, to.data + r * to.pitch, width);
    }
  }
  void write(const Image& image, int64_t row, int64_t channel, int64_t rows, int width,
             WideRows<const T> from) const {
    for (int64_t r = 0; r < rows; ++r) {
      write_row(image, (row + r) * image.stride_h + channel, 1, from.data + r * from.pitch, width);
    }
  }
  // Whether whole vectors of T can be written to a unit's channels in their place.
  bool in_place(const Image& image, int level) const {
    return has_plain_rows<T>(image) && pitch(level) == unit.widths[level];
  }
  WideRows<T> place(const Image& image, int64_t row, int64_t channel) const {
    T* data = static_cast<T*>(const_cast<void*>(image.data));
    return {data + row * image.stride_h + channel, image.stride_h};
  }

  void map(int l, WideRows<T> in, int64_t rows, Activation activation, WideRows<T> out) const {
    map_rows<T>(fixed(in), rows, unit.widths[l], {weights[l], pitch(l + 1)}, pitch(l + 1),
                biases[l], activation, out);
  }

  void forward(int64_t row, int64_t rows) {
    WideRows<T> in = rows_at(0);
    read(call.x, row, unit.in_channel, rows, unit.widths[0], in);
    const int last = call.depth - 1;
    for (int l = 0; l < last; ++l) {
      const WideRows<T> out = rows_at(l + 1);
      map(l, in, rows, call.hidden, out);
      in = out;
    }
    if (in_place(call.y, last + 1)) {
      return map(last, in, rows, call.out, place(call.y, row, unit.out_channel));
    }
    const WideRows<T> out = rows_at(last + 1);
    map(last, in, rows, call.out, out);
    write(call.y, row, unit.out_channel, rows, unit.widths[last + 1], fixed(out));
  }

  // Adds the gradients of weights and biases to `sums`.
  void backward(int64_t row, int64_t rows, T* sums) {
    WideRows<T> inputs[kLevels];
    const T* kept[kLevels];  // what tells a level's activation its derivative
    recompute(row, rows, inputs, kept);
    WideRows<T> grad = rows_at(call.depth);
    read(call.y, row, unit.out_channel, rows, unit.widths[call.depth], grad);
    for (int l = call.depth - 1; l >= 0; --l) {
      const int c_in = unit.widths[l], c_out = unit.widths[l + 1];
      if (kept[l]) differentiate(activation(l), kept[l], rows * grad.pitch, grad.data);
      add_weight_grad(fixed(grad), fixed(inputs[l]), rows, c_out, c_in,
                      sums + call.weight_sums[l] + unit.weights[l]);
      if (biases[l]) {
        add_bias_grad(fixed(grad), rows, c_out, sums + call.bias_sums[l] + unit.biases[l]);
      }
      const bool placed = l == 0 && in_place(call.grad_x, 0);
      const WideRows<T> before = placed   ? place(call.grad_x, row, unit.in_channel)
                                 : l == 0 ? inputs[0]
                                          : rows_at(l);
      map_rows<T>(fixed(grad), rows, c_out, {back_weights[l], pitch(l)}, pitch(l), nullptr,
                  Activation::identity, before);
      if (l == 0 && !placed) write(call.grad_x, row, unit.in_channel, rows, c_in, fixed(before));
      grad = before;
    }
  }

  void recompute(int64_t row, int64_t rows, WideRows<T>* inputs, const T** kept) {
    WideRows<T> in = rows_at(0);
    read(call.x, row, unit.in_channel, rows, unit.widths[0], in);
    for (int l = 0; l < call.depth; ++l) {
      inputs[l] = in;
      kept[l] = nullptr;
      const Activation name = activation(l);
      const bool last = l == call.depth - 1;
      if (last && name == Activation::identity) return;
      const WideRows<T> z = rows_at(l + 1);
      const bool of_z = last || derives_from_input(name);
      map(l, in, rows, of_z ? Activation::identity : name, z);
      kept[l] = name == Activation::identity ? nullptr : z.data;
      in = z;
      if (last || !of_z) continue;
      in = rows_at(l + 1);
      copy_row(z.data, in.data, rows * z.pitch);
      activate_in_place(name, in.data, rows * z.pitch);
    }
  }

  static void differentiate(Activation name, const T* kept, int64_t size, T* grad) {
    with_activation_grad<T>(name, [&](auto derive) BUNIT_ALWAYS {
      for (int64_t i = 0; i < size; i += kLanes<T>) {
        store(grad + i, derive(load(kept + i), load(grad + i)));
      }
    });
  }
};

// Rows of one part, units [first, last).
template <class T>
void wide_linear_item(const LinearCall& call, int64_t part, int64_t first, int64_t last,
                      void* scratch) {
  T* const sums = static_cast<T*>(call.sums) + part * call.sums_size;
  const int64_t row1 = at_most((part + 1) * call.part, call.x.h);
  for (int64_t u = first; u < last; ++u) {
    WideUnit<T> unit{call, call.units[u], static_cast<T*>(scratch), {}, {}, {}};
    unit.pack();
    T* const memory = unit.memory;
    for (int64_t row = part * call.part; row < row1; row += call.block) {
      const int64_t rows = at_most(call.block, row1 - row);
      unit.memory = memory;
      if (call.grad_x.data) {
        unit.backward(row, rows, sums);
      } else {
        unit.forward(row, rows);
      }
    }
  }
}

}  // namespace bunit::BUNIT_ISA
