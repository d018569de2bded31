// Gradients of one level: of its weights, of its input, and through the norms on both sides.
#pragma once

#include "backward_rows.h"
#include "stage.h"
#include "weight_grad.h"
#include "weight_grad_rows.h"
#include "weight_grad_wide.h"
#include "weight_grad_winograd.h"

namespace bunit::BUNIT_ISA {

template <class T>
struct LevelBackward {
  const BackwardCall& call;
  const BackwardUnit& unit;
  const BackwardKind& kind;
  const int64_t lanes;
  T *grads, *inputs, *outs, *tiles, *spare, *spare_z;

  LevelBackward(const BackwardCall& call, const BackwardUnit& unit, T* scratch)
      : call(call), unit(unit), kind(*unit.kind), lanes(call.lanes) {
    const int64_t widest = at_least(call.x.w, call.grad.w) * lanes;
    const int64_t spare_size = at_least(kind.row, widest) + kLanes<T>;
    tiles = scratch;
    spare = tiles + kind.tiles_size;
    spare_z = spare + spare_size;
    grads = with_aligned(spare_z + spare_size, kind.reach * lanes);
    inputs = with_aligned(grads + kind.c_out * kind.grad_plane, kind.pad * lanes);
    outs = with_aligned(inputs + int64_t(kind.c_in) * kind.phases * kind.phases * kind.x_plane,
                        kind.pad * lanes);
  }

  // Rows [y0, y1) of the output of image n; for the input's gradient, rows [y0, q1) of its phases.
  void run(int64_t n, int64_t y0, int64_t y1, int64_t q1, T* grad_weight, T* grad_bias,
           double* in_sums) {
    const int64_t end = at_least(y1, q1);
    load_grads(n, y0, end);
    clear_behind(grads, kind.grad_plane, kind.c_out, end + kind.reach - y0);
    if (grad_weight) {
      load_inputs(n, y0, y1);
      clear_behind(inputs, kind.x_plane, kind.c_in, y1 + kind.reach - y0);
      const T* own = grads + kind.reach * (kind.row + lanes);  // row y0
      weight_grad(own, y1 - y0, grad_weight + unit.weight);
      if (grad_bias) {
        add_bias_grads<T>({own, kind.row, kind.grad_plane}, y1 - y0, call.grad.w * lanes,
                          kind.c_out, grad_bias + unit.out.first);
      }
    }
    if (call.grad_x.data && q1 > y0) input_grad(n, y0, q1, in_sums);
  }

  // What Winograd's tiles take in behind `rows` rows of planes and what then comes to nothing.
  void clear_behind(T* planes, int64_t plane, int channels, int64_t rows) const {
    if (!kind.winograd) return;
    for (int c = 0; c < channels; ++c) {
      clear(planes + c * plane + rows * kind.row, kind.row + Winograd<T>::kReadsBehind);
    }
  }

  void weight_grad(const T* own, int64_t rows, T* out) const {
    if (kind.winograd) {
      return WinogradWeightGrad<T>{.grad = own,
                                   .grad_plane = kind.grad_plane,
                                   .c_out = kind.c_out,
                                   .in = inputs,
                                   .in_plane = kind.x_plane,
                                   .c_in = kind.c_in,
                                   .row = kind.row,
                                   .rows = rows,
                                   .width = call.grad.w,
                                   .lanes = lanes,
                                   .memory = tiles,
                                   .most = kind.tiles_at_once}
          .run(out);
    }
    if (kind.wide) {
      return WideWeightGrad<T>{own, inputs, kind, rows, call.grad.w}.run(
          outs + kind.c_in * kind.out_plane, out);
    }
    if (kind.plain && rows > 1 && (lanes > 1 || fills_rows<T>(call.grad.w))) {
      const WeightGradRows<T> sums{{own, kind.row, kind.grad_plane},
                                   {inputs, kind.row, kind.x_plane},
                                   rows,
                                   call.grad.w * lanes,
                                   lanes};
      return sums.run(kind.c_out, kind.c_in, out);
    }
    const auto* mask = static_cast<const typename VecOf<T>::Int*>(kind.mask);
    const WeightGrad<T> sums{own,  kind.grad_plane, inputs, kind.x_offsets, kind.taps,
                             mask, kind.row};
    if (lanes > 1) {
      sums.run(kind.c_out, rows, call.grad.w * lanes, out);
    } else {
      sums.run(kind.c_out, 1, (rows - 1) * kind.row + call.grad.w, out);
    }
  }

  void load_grads(int64_t n, int64_t y0, int64_t end) {
    const PlaneMap map{kind.row, kind.grad_plane, lanes, 1, kind.reach, 1};
    const int64_t below = end + kind.reach;
    if (call.out_norm.mean) {
      return load_through_norm(call, unit, n, map, y0, y0, below, grads, spare, spare_z);
    }
    load_planes(ReadPixels{call.grad, n}, call.grad.h, call.grad.w, has_dense_rows(call.grad),
                unit.out.first, kind.c_out, map, y0, y0, below, grads);
  }

  void load_inputs(int64_t n, int64_t y0, int64_t y1) {
    const PlaneMap map{kind.row, kind.x_plane, lanes, call.stride, kind.pad, kind.phases};
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

  void input_grad(int64_t n, int64_t q0, int64_t q1, double* in_sums) {
    const int64_t* offsets = kind.grad_offsets;
    const T* weights = static_cast<const T*>(unit.weights);
    for (int py = 0; py < call.stride; ++py) {
      for (int px = 0; px < call.stride; ++px) {
        const int taps = int(kind.phase_taps[py * call.stride + px]);
        // Columns of this phase that are pixels: column j is x = j * stride + px - pad.
        const int64_t first = at_least(ceil_div(kind.pad - px, call.stride), 0);
        const int64_t last = ceil_div(call.x.w + kind.pad - px, call.stride);
        if (kind.winograd) {
          Winograd<T>{.in = grads + first * lanes,
                      .in_row = kind.row,
                      .in_plane = kind.grad_plane,
                      .c_in = kind.c_out,
                      .weights = weights,
                      .bias = nullptr,
                      .c_out = kind.c_in,
                      .activation = Activation::identity,
                      .around = false,
                      .out = outs + first * lanes,
                      .out_row = kind.row,
                      .out_plane = kind.out_plane,
                      .rows = q1 - q0,
                      .width = last - first,
                      .lanes = lanes,
                      .memory = tiles}
              .run();
        } else if (lanes > 1) {
          for (int64_t r = 0; r < q1 - q0; ++r) {
            conv_flat<T>(grads + r * kind.row, offsets, taps, weights, nullptr, kind.c_in,
                         Activation::identity, outs + r * kind.row, kind.out_plane,
                         at_least(last, 1) * lanes);
          }
        } else if (takes_rows<T>(kind.plain, kind.c_in, last - first)) {
          conv_rows<T>({grads + first, kind.row, kind.grad_plane}, kind.c_out, weights, nullptr,
                       kind.c_in, kind.pairs, Activation::identity, false, outs + first,
                       kind.out_plane, kind.row, q1 - q0, last - first, nullptr);
        } else {
          conv_flat<T>(grads, offsets, taps, weights, nullptr, kind.c_in, Activation::identity,
                       outs, kind.out_plane, (q1 - q0 - 1) * kind.row + at_least(last, 1));
        }
        if (call.stride == 1) {  // phase rows are image rows, but for the padding
          const int64_t y0 = at_least(q0 - kind.pad, 0), y1 = at_most(q1 - kind.pad, call.x.h);
          if (y1 <= y0 || last <= first) continue;
          T* rows = outs + (y0 + kind.pad - q0) * kind.row + first * lanes;
          if (call.in_norm.mean) {
            through_in_norm(call, n, unit.in_channel, kind.c_in, y0, y1, rows, kind.out_plane,
                            kind.row, spare, spare_z, in_sums);
          } else {
            store_planes(call.grad_x, n, unit.in_channel, kind.c_in, y0, y1 - y0, rows,
                         kind.out_plane, kind.row);
          }
          continue;
        }
        for (int c = 0; c < kind.c_in; ++c) {
          for (int64_t q = q0; q < q1; ++q) {
            const int64_t y = q * call.stride + py - kind.pad;
            if (y < 0 || y >= call.x.h || last <= first) continue;
            T* row = outs + c * kind.out_plane + (q - q0) * kind.row + first * lanes;
            const int64_t x = first * call.stride + px - kind.pad;
            write_pixels(call.grad_x, offset_of(call.grad_x, n, unit.in_channel + c, y, x),
                         call.stride, row, last - first);
          }
        }
        offsets += taps;
        weights += int64_t(taps) * kind.c_in;
      }
    }
  }
};

// The images of a call, for one image n (or vector of images) and units [first, last), with planes
// in place of those that lie otherwise.
template <class T>
struct StagedBackward {
  const BackwardCall& given;
  BackwardCall call;
  int64_t first, last;
  Region out, in;
  T* grad_x;

  // For output rows [y0, y1), and on to q1 for the input's gradient: these with a halo, and the
  // input rows that go with them.
  StagedBackward(const BackwardCall& given, int64_t first, int64_t last, int64_t y0, int64_t y1,
                 int64_t q1)
      : given(given), call(given), first(first), last(last), grad_x(nullptr) {
    Image* const read[] = {&call.grad, &call.x, &call.z};
    for (Image* image : read) {
      image->ahead = bytes_ahead(*image, given.lanes, given.lanes * image->stride_n);
    }
    const BackwardUnit &begin = given.units[first], &end = given.units[last - 1];
    int64_t reach = 0, pad = 0;
    for (int64_t u = first; u < last; ++u) {
      reach = at_least(reach, given.units[u].kind->reach);
      pad = at_least(pad, given.units[u].kind->pad);
    }
    out = {begin.out.first, end.out.first + end.out.count,
           at_most(at_least(y0 - reach, 0), given.grad.h),
           at_most(at_least(y1, q1) + reach, given.grad.h), given.lanes};
    const int64_t below = at_least(y1 + reach, q1) * given.stride + given.stride;
    in = {begin.in_channel, end.in_channel + end.kind->c_in,
          at_most(at_least(y0 * given.stride - pad, 0), given.x.h), at_most(below, given.x.h),
          given.lanes};
  }

  bool is_staged(const Image& image) const {
    return image.data && (given.lanes > 1 || image.is_interleaved());
  }

  // Takes what it needs of `memory` and returns the rest.
  T* load(int64_t n, T* memory) {
    if (is_staged(given.grad)) {
      call.grad = stage_in_outputs(call.grad, n, given.units, first, last, out, memory);
      memory += out.size(given.grad);
    }
    if (given.out_norm.mean && is_staged(given.z)) {
      call.z = stage_in_outputs(call.z, n, given.units, first, last, out, memory);
      memory += out.size(given.z);
    }
    const bool reads_x = given.grad_weight || given.in_norm.mean;
    if (reads_x && is_staged(given.x)) {
      call.x = stage_in(call.x, n, in, memory);
      memory += in.size(given.x);
    }
    if (is_staged(given.grad_x)) {
      call.grad_x = planes_of(given.grad_x, in, memory);
      grad_x = memory;
      memory += in.size(given.grad_x);
    }
    return memory;
  }

  // Rows of the input's gradient that belong to this segment: which, depends on the kind.
  template <class F>
  void store_grad_x(int64_t n, int64_t y0, F end_of) const {
    const int64_t plane = in.plane(given.x);
    for (int64_t u = first, next; u < last; u = next) {
      const BackwardKind& kind = *given.units[u].kind;
      const auto alike = [&](const BackwardKind& other) {
        return other.pad == kind.pad && other.by_rows == kind.by_rows;
      };
      next = u + 1;
      while (next < last && alike(*given.units[next].kind)) ++next;
      const BackwardUnit& end = given.units[next - 1];
      const int64_t above = kind.by_rows ? 0 : kind.pad;
      const int64_t top = at_most(at_least(y0 * given.stride - above, 0), given.x.h);
      const int64_t bottom = at_most(end_of(kind) * given.stride - above, given.x.h);
      if (bottom <= top) continue;
      const Region own{given.units[u].in_channel, end.in_channel + end.kind->c_in, top, bottom,
                       given.lanes};
      const int64_t row = given.x.w * given.lanes;
      stage_out(given.grad_x, n, own, grad_x + (own.c0 - in.c0) * plane + (top - in.y0) * row,
                plane, given.around);
    }
  }
};

// Images of one block, one segment, units [first, last).
template <class T>
void backward_item(const BackwardCall& given, int64_t block, int64_t segment, int64_t first,
                   int64_t last, void* scratch) {
  const int64_t y0 = given.grad.h * segment / given.segments;
  const int64_t y1 = given.grad.h * (segment + 1) / given.segments;
  const int64_t part = block * given.segments + segment;
  T* grad_weight =
      given.grad_weight ? static_cast<T*>(given.grad_weight) + part * given.weight_step : nullptr;
  T* grad_bias =
      given.grad_bias ? static_cast<T*>(given.grad_bias) + part * given.bias_step : nullptr;
  double* in_sums = given.in_sums ? given.in_sums + part * given.sums_step : nullptr;
  // Input rows below the last output row's own belong to the last segment.
  const auto end_of = [&](const BackwardKind& kind) {
    if (kind.by_rows) return y1;
    const int64_t rows = (given.x.h - 1 + kind.pad) / given.stride + 1;
    return segment + 1 == given.segments ? rows : at_most(y1, rows);
  };
  int64_t end = y1;
  for (int64_t u = first; u < last; ++u) end = at_least(end, end_of(*given.units[u].kind));

  // Sums of weight gradients that stay vectors for some images (RowsBackward).
  T* const sums = static_cast<T*>(scratch);
  T* const working = sums + (last - first) * given.sums_size;
  const auto sums_of = [&](int64_t u) {
    return reinterpret_cast<Vec<T>*>(grad_weight ? sums + (u - first) * given.sums_size : nullptr);
  };
  clear(sums, working - sums);

  const int64_t n0 = block * given.block;
  const int64_t n1 = at_most(n0 + given.block, given.x.n / given.lanes);
  for (int64_t n = n0; n < n1; ++n) {
    StagedBackward<T> staged(given, first, last, y0, y1, end);
    T* memory = staged.load(n, working);
    for (int64_t u = first; u < last; ++u) {
      const BackwardUnit& unit = given.units[u];
      if (!kLoadsLanes || !unit.kind->by_rows) {
        LevelBackward<T>(staged.call, unit, memory)
            .run(n, y0, y1, end_of(*unit.kind), grad_weight, grad_bias, in_sums);
        continue;
      }
      RowsBackward<T>(staged.call, unit, n, memory).run(y0, y1, sums_of(u), grad_bias, in_sums);
      const bool due = (n + 1 - n0) % kImagesInSums == 0 || n + 1 == n1;
      if (grad_weight && due) RowsBackward<T>::add_up(unit, sums_of(u), grad_weight);
    }
    if (staged.grad_x) staged.store_grad_x(n, y0, end_of);
  }
  for (int64_t u = first; u < last && grad_weight; ++u) {
    const BackwardUnit& unit = given.units[u];
    if (!unit.kind->wide) continue;
    WideWeightGrad<T>::turn(*unit.kind, static_cast<T*>(scratch), grad_weight + unit.weight);
  }
}

}  // namespace bunit::BUNIT_ISA
