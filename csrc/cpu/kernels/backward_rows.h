// Gradients of a 3x3 level of stride 1 with AVX-512, on rows without padding: what is an image of T
// is read and written where it lies, anything else goes through planes that hold rows end to end.
// At an image's edges lanes are masked. Weight gradients stay vectors for some images, as adding up
// lanes would take a fifth of the time of a row of 16 pixels.
#pragma once

#include "backward_norms.h"
#include "conv_rows.h"
#include "weight_grad_rows.h"

namespace bunit::BUNIT_ISA {

constexpr int64_t kImagesInSums = 16;

template <class T>
struct RowsBackward {
  const BackwardCall& call;
  const BackwardUnit& unit;
  const BackwardKind& kind;
  const int64_t n;
  T *spare, *spare_z, *grads, *inputs, *outs;

  RowsBackward(const BackwardCall& call, const BackwardUnit& unit, int64_t n, T* scratch)
      : call(call), unit(unit), kind(*unit.kind), n(n) {
    const int64_t spare_size = call.x.w + kLanes<T>;
    spare = scratch;
    spare_z = spare + spare_size;
    grads = with_aligned(spare_z + spare_size, 0);
    inputs = with_aligned(grads + kind.c_out * kind.grad_plane, 0);
    outs = with_aligned(inputs + kind.c_in * kind.x_plane, 0);
  }

  // Rows [y0, y1) of the output and of the input's gradient. Adds to `sums`, vectors for each
  // weight (null: not wanted).
  void run(int64_t y0, int64_t y1, Vec<T>* sums, T* grad_bias, double* in_sums) {
    const ImageRows<T> grad = rows_of_grad(at_least(y0 - 1, 0), at_most(y1 + 1, call.grad.h));
    if (sums) {
      const ImageRows<T> x = rows_of_x(at_least(y0 - 1, 0), at_most(y1 + 1, call.x.h));
      UnpaddedWeightGrad<T>{grad, x, y0, y1, call.x.h, call.x.w}.add(kind.c_out, kind.c_in, sums);
      if (grad_bias) {
        const ImageRows<T> own{grad.at(0, y0), grad.row, grad.plane};
        add_bias_grads(own, y1 - y0, call.grad.w, kind.c_out, grad_bias + unit.out.first);
      }
    }
    if (call.grad_x.data) input_grad(grad, y0, y1, in_sums);
  }

  // Adds the sums of `sums`' lanes to the unit's weight gradients, and clears them.
  static void add_up(const BackwardUnit& unit, Vec<T>* sums, T* grad_weight) {
    const int count = unit.kind->taps * unit.kind->c_out;
    T* out = grad_weight + unit.weight;
    for (int i = 0; i < count; i += kLanes<T>) {
      const int some = count - i < kLanes<T> ? count - i : kLanes<T>;
      T totals[kLanes<T>];
      sum_each<T>(sums + i, some, totals);
      for (int k = 0; k < some; ++k) out[i + k] += totals[k];
    }
    clear(reinterpret_cast<T*>(sums), int64_t(count) * kLanes<T>);
  }

 private:
  // Rows [y0, y1), where they lie or in `planes`.
  template <class Reader>
  ImageRows<T> rows_of(const Reader& read, int64_t channel, int channels, int64_t y0, int64_t y1,
                       int64_t plane, T* planes) const {
    const Image& image = read.source(0);
    if (Reader::kPlain && has_plain_rows<T>(image)) {
      return {static_cast<const T*>(image.data) + offset_of(image, n, channel, 0, 0),
              image.stride_h, image.stride_c};
    }
    load_planes(read, image.h, image.w, has_dense_rows(image), channel, channels,
                PlaneMap{kind.row, plane, 1, 1, 0, 1}, y0, y0, y1, planes);
    return {planes - y0 * kind.row, kind.row, plane};
  }

  ImageRows<T> rows_of_grad(int64_t y0, int64_t y1) const {
    if (!call.out_norm.mean) {
      return rows_of(ReadPixels{call.grad, n}, unit.out.first, kind.c_out, y0, y1, kind.grad_plane,
                     grads);
    }
    load_through_norm(call, unit, n, PlaneMap{kind.row, kind.grad_plane, 1, 1, 0, 1}, y0, y0, y1,
                      grads, spare, spare_z);
    return {grads - y0 * kind.row, kind.row, kind.grad_plane};
  }

  ImageRows<T> rows_of_x(int64_t y0, int64_t y1) const {
    const auto of = [&](const auto& reader) {
      return rows_of(reader, unit.in_channel, kind.c_in, y0, y1, kind.x_plane, inputs);
    };
    if (!call.in_norm.mean) return of(ReadPixels{call.x, n});
    return of(ReadNormalised<T>{call.x, n, call.in_norm, call.in_activation, spare});
  }

  void input_grad(const ImageRows<T>& grad, int64_t y0, int64_t y1, double* in_sums) {
    const Image& out = call.grad_x;
    const bool direct = !call.in_norm.mean && has_plain_rows<T>(out);
    T* target = outs;
    if (direct) {
      target =
          static_cast<T*>(const_cast<void*>(out.data)) + offset_of(out, n, unit.in_channel, y0, 0);
    }
    Soon soon;
    if (!call.in_norm.mean && call.segments == 1) {
      soon = Soon::of<T>(call.x, offset_of(call.x, n, unit.in_channel, 0, 0), kind.c_in,
                         strips_of<T>(kind.c_in, y1 - y0, out.w));
    }
    const StripRows<T> rows{
        grad.at(0, y0 - 1) - 1, grad.row, grad.plane, false, y0 == 0, y1 == out.h};
    conv_rows<T>(rows, kind.c_out, static_cast<const T*>(unit.weights), nullptr, kind.c_in,
                 kind.pairs, Activation::identity, false, target,
                 direct ? out.stride_c : kind.out_plane, direct ? out.stride_h : kind.row, y1 - y0,
                 out.w, soon.lines > 0 ? &soon : nullptr);
    if (direct) return;
    if (call.in_norm.mean) {
      return through_in_norm(call, n, unit.in_channel, kind.c_in, y0, y1, outs, kind.out_plane,
                             kind.row, spare, spare_z, in_sums);
    }
    store_planes(out, n, unit.in_channel, kind.c_in, y0, y1 - y0, outs, kind.out_plane, kind.row);
  }
};

}  // namespace bunit::BUNIT_ISA
