// All levels of one unit over some rows of one image, the hidden activations never leaving the
// cache.
//
// Finished rows are made a few at a time, top to bottom. Each level's input buffer keeps the rows
// that the next step needs again, so that nothing is computed twice within a segment.
#pragma once

#include "moments.h"
#include "squares_forward.h"
#include "stage.h"
#include "winograd.h"

namespace bunit::BUNIT_ISA {

// Rows [begin, end) of a level's padded input that its buffer holds.
struct Window {
  int64_t begin, end;
};

// Where rows of level l's padded input begin and end if they are to begin and end with `row`: with
// whole tiles of the level before, where Winograd makes it two rows at a time.
BUNIT_INLINE bool is_second_of_tile(const Kind& kind, int l, int64_t row) {
  const int64_t y = row - kind.levels[l].pad;
  if (l == 0 || y <= 0 || y % 2 == 0) return false;
  const Level& made = kind.levels[l - 1];
  return made.winograd || made.pairs || kind.squares;
}
BUNIT_INLINE int64_t first_made(const Kind& kind, int l, int64_t row) {
  return row - is_second_of_tile(kind, l, row);
}
BUNIT_INLINE int64_t last_made(const Kind& kind, int l, int64_t row) {
  return row + is_second_of_tile(kind, l, row);
}

template <class T>
struct UnitForward {
  const ForwardCall& call;
  const PackedUnit& unit;
  const Kind& kind;
  int64_t n;
  T* buffers[kLevels];
  T* finished;  // planes of the finished rows
  T* spare;     // a row
  T* staging;   // rows of a vector of images, on their way between images and planes
  T* tiles;     // what Winograd works in
  Window windows[kLevels];
  bool reads_image;  // whether the first level reads the image where it lies
  bool padded;       // whether buffers hold their padding; else they are read as an image is
  int64_t row;       // elements a row in every buffer
  Soon soon;
  SquaresForward<T> squares;

  UnitForward(const ForwardCall& call, const PackedUnit& unit, int64_t n, T* scratch)
      : call(call), unit(unit), kind(*unit.kind), n(n), squares(call, unit, n, scratch) {
    // (Rows on which a norm is applied as they are copied: with padding 64 units 4-8-4, N=32,
    // 28x28, took 0.96 of the time.)
    padded = !kLoadsLanes || kind.levels[0].pad != 1 || call.in_norm.mean;
    reads_image = !padded && kind.levels[0].by_rows && has_plain_rows<T>(call.x);
    for (int l = reads_image; l < call.depth; ++l) padded = padded || !kind.levels[l].by_rows;
    row = padded ? kind.row : call.x.w;
    spare = scratch;
    scratch += kind.row + kLanes<T>;
    if (kSquares && kind.squares) {
      scratch = squares.place(scratch + 2 * kind.row);  // `spare` is three rows
    }
    for (int l = 0; l < call.depth && !kind.squares; ++l) {
      const Level& level = kind.levels[l];
      buffers[l] = with_aligned(scratch, margin(level));
      scratch = buffers[l] + level.c_in * level.phases * level.phases * level.plane;
    }
    finished = with_aligned(scratch, 0);
    tiles = finished + last().c_out * kind.out_plane;
    staging = tiles + kind.tiles_size;
  }

  const Level& last() const { return kind.levels[call.depth - 1]; }
  // Elements of padding on the left of a level's input rows.
  int64_t margin(const Level& level) const { return padded ? level.pad * call.lanes : 0; }

  // The windows from which output row `y0` is made.
  void start(int64_t y0) {
    if (kSquares && kind.squares) return squares.start(y0);
    int64_t row = y0;
    for (int l = call.depth - 1; l >= 0; --l) {
      row = first_made(kind, l, row);
      windows[l] = {row, row};
      row = at_least(row - kind.levels[l].pad, 0);
    }
  }

  // Makes sure that level l's buffer holds its rows [begin, end), reusing what it holds.
  void fill(int l, int64_t begin, int64_t end) {
    const Level& level = kind.levels[l];
    Window& window = windows[l];
    begin = first_made(kind, l, begin);
    end = last_made(kind, l, end);
    const int planes = level.c_in * level.phases * level.phases;
    if (begin > window.begin && window.end > begin) {
      const size_t kept = size_t((window.end - begin) * row + margin(level)) * sizeof(T);
      for (int i = 0; i < planes; ++i) {
        T* plane = buffers[l] + i * level.plane;
        memmove(plane, plane + (begin - window.begin) * row, kept);
      }
    }
    window.begin = begin;
    const int64_t from = at_least(window.end, begin);
    window.end = at_least(window.end, end);
    if (from >= end) return;
    if (l == 0) {
      const PlaneMap map{row, level.plane, call.lanes, call.stride, level.pad, level.phases};
      const int64_t top = at_most(at_least(from * call.stride - level.pad, 0), call.x.h);
      const int64_t bottom = at_most(at_least(end * call.stride - level.pad, top), call.x.h);
      const Image x = as_planes(call.x, unit.in_channel, level.c_in, top, bottom);
      const auto load = [&](const auto& reader) {
        if (!padded) {
          return load_planes(reader, x.h, x.w, has_dense_rows(x), unit.in_channel, level.c_in,
                             PlaneMap{row, level.plane, 1, 1, 0, 1}, begin - level.pad, top, bottom,
                             buffers[0]);
        }
        load_planes(reader, x.h, x.w, has_dense_rows(x), unit.in_channel, level.c_in, map, begin,
                    from, end, buffers[0]);
      };
      if (call.in_norm.mean) {
        load(ReadNormalised<T>{x, n, call.in_norm, call.in_activation, spare});
      } else {
        load(ReadPixels{x, n});
      }
    } else {
      compute(l - 1, from - level.pad, end - level.pad, l, begin);
    }
  }

  // Output rows [y0, y1) of level l, some of them maybe outside the image and so zero, into the
  // buffer of level `next`, which begins at its row `base`.
  void compute(int l, int64_t y0, int64_t y1, int next, int64_t base) {
    const Level& level = kind.levels[l];
    const Level& target = kind.levels[next];
    const int64_t top = at_most(at_least(y0, 0), y1);
    const int64_t bottom = at_least(at_most(y1, level.out_h), top);
    T* rows = buffers[next] + (y0 + target.pad - base) * row;
    if (bottom > top) {
      run_level(l, top, bottom, rows + (top - y0) * row + margin(target), target.plane, row,
                call.hidden);
    }
    if (padded) clear_padding(level, target, rows, y0, y1, top, bottom);
  }

  // Of the planes of rows [y0, y1), of which those of [top, bottom) are made.
  void clear_padding(const Level& level, const Level& target, T* rows, int64_t y0, int64_t y1,
                     int64_t top, int64_t bottom) const {
    const int64_t left = margin(target), width = level.out_w * call.lanes;
    for (int c = 0; c < level.c_out; ++c) {
      T* plane = rows + c * target.plane;
      T* first = plane + (top - y0) * row;
      clear(plane, (top - y0) * row + left);
      clear_each(first + left + width, bottom - top, row, row - width);
      clear(plane + (bottom - y0) * row, (y1 - bottom) * row + left);
    }
  }

  void run_level(int l, int64_t y0, int64_t y1, T* out, int64_t out_plane, int64_t out_row,
                 Activation activation, bool around = false) {
    const Level& level = kind.levels[l];
    Soon* ahead = soon.lines > 0 ? &soon : nullptr;
    if constexpr (kSquares) {
      if (kind.squares) {  // the last level: it makes the others
        const ToRows<T> target{
            out, out_plane, out_row, y1 - y0, level.out_w, kind.squares == kLanes<T>, around};
        return squares.make(y0, y1, activation, target, ahead);
      }
    }
    const T* weights = static_cast<const T*>(unit.weights[l]);
    const T* bias = static_cast<const T*>(unit.biases[l]);
    const auto by_rows_of = [&](StripRows<T> rows, bool has_padding) {
      rows.padded = has_padding;
      rows.top = y0 == 0;
      rows.bottom = y1 == level.out_h;
      conv_rows<T>(rows, level.c_in, weights, bias, level.c_out, level.pairs, activation, around,
                   out, out_plane, out_row, y1 - y0, level.out_w, ahead);
    };
    if (l == 0 && reads_image) {
      const Image& x = call.x;
      const T* image = static_cast<const T*>(x.data) + offset_of(x, n, unit.in_channel, y0 - 1, -1);
      return by_rows_of({image, x.stride_h, x.stride_c}, false);
    }
    fill(l, y0, y1 + level.reach);
    T* in = buffers[l] + (y0 - windows[l].begin) * row;
    if (level.winograd) {
      // What is read behind the last row comes to nothing, but subnormal numbers would take long.
      const int64_t behind = at_least(windows[l].end, y1 + level.reach) - y0;
      for (int c = 0; c < level.c_in; ++c) {
        clear(in + c * level.plane + behind * row, (y1 - y0) % 2 * row + Winograd<T>::kReadsBehind);
      }
      return Winograd<T>{.in = in,
                         .in_row = row,
                         .in_plane = level.plane,
                         .c_in = level.c_in,
                         .weights = weights,
                         .bias = bias,
                         .c_out = level.c_out,
                         .activation = activation,
                         .around = around,
                         .out = out,
                         .out_row = out_row,
                         .out_plane = out_plane,
                         .rows = y1 - y0,
                         .width = level.out_w,
                         .lanes = call.lanes,
                         .memory = tiles}
          .run();
    }
    if (level.by_rows) return by_rows_of({in - !padded, row, level.plane}, padded);
    // A vector a pixel: row by row, so that nothing is computed between them.
    const int64_t runs = call.lanes > 1 ? y1 - y0 : 1;
    const int64_t flat =
        call.lanes > 1 ? level.out_w * call.lanes : (y1 - y0 - 1) * row + level.out_w;
    for (int64_t r = 0; r < runs; ++r) {
      conv_flat<T>(in + r * row, level.offsets, level.taps, weights, bias, level.c_out, activation,
                   out + r * out_row, out_plane, flat);
    }
  }

  // Rows [y0, y1) of an image whose channels are not interleaved; of a vector of images side by
  // side.
  Image as_planes(const Image& image, int64_t channel, int channels, int64_t y0, int64_t y1) const {
    if (call.lanes == image.lanes) return image;
    return stage_in(image, n, {channel, channel + channels, y0, y1, call.lanes}, staging);
  }

  // Elements from one finished row to the next: without gaps where they are yet to be transposed.
  int64_t finished_row() const { return call.lanes > 1 ? last().out_w * call.lanes : kind.row; }

  // Whether finished rows can go straight into the output tensor.
  bool direct(const Moments* moments) const {
    if (moments || call.residual.data || step_of(call.y, unit.out) == 0) return false;
    const Scalar own = sizeof(T) == 8 ? Scalar::float64 : Scalar::float32;
    return call.lanes > 1 ? call.y.lanes > 1
                          : ((last().by_rows || last().winograd || kind.squares) &&
                             call.y.dtype == own && call.y.stride_w == 1);
  }

  // Whether a unit's output, to be at `out`, goes around the caches once it is whole.
  bool leaves_whole(const T* out) const {
    const Image& y = call.y;
    return call.around_whole && step_of(y, unit.out) == 1 && y.stride_h == y.w &&
           y.stride_c == y.h * y.w &&
           last().c_out * y.stride_c * int64_t(sizeof(T)) % kLineBytes == 0 &&
           reinterpret_cast<uintptr_t>(out) % kLineBytes == 0;
  }

  // Adds the residual to finished rows.
  void add_residual(int64_t y0, int64_t y1) {
    const Level& level = last();
    for (int c = 0; c < level.c_out; ++c) {
      const int64_t channel = place_of(call.residual, unit.out, c);
      const Image residual = as_planes(call.residual, channel, 1, y0, y1);
      for (int64_t y = y0; y < y1; ++y) {
        T* row = finished + c * kind.out_plane + (y - y0) * finished_row();
        read_pixels(residual, offset_of(residual, n, channel, y, 0), 1, spare, level.out_w);
        const int64_t width = level.out_w * call.lanes;
        for (int64_t i = 0; i < width; i += kLanes<T>) {
          const Vec<T> v = activate<T>(call.after_residual, load(row + i) + load(spare + i));
          store(spare + i, v);
        }
        memcpy(row, spare, size_t(width) * sizeof(T));
      }
    }
  }

  // Merges finished rows into the channels' moments, and where `out` is plain writes them to it on
  // the way.
  void add_moments_of_rows(int64_t y, int64_t rows, Moments* moments, bool stores) {
    const int64_t width = last().out_w * call.lanes;
    for (int first = 0; first < last().c_out; first += kBlock) {
      const int end = first + kBlock < last().c_out ? first + kBlock : last().c_out;
      for (int c = first; c < end && stores; ++c) {
        const T* row = finished + c * kind.out_plane;
        T* out = static_cast<T*>(const_cast<void*>(call.y.data)) +
                 offset_of(call.y, n, place_of(call.y, unit.out, c), y, 0);
        for (int64_t r = 0; r < rows; ++r, row += finished_row(), out += call.y.stride_h) {
          if (call.around) {
            copy_around(row, out, width);
          } else {
            copy_row(row, out, width);
          }
        }
      }
      add_moments(end - first, finished + first * kind.out_plane, kind.out_plane, finished_row(),
                  rows, width, moments + first);
    }
  }

  // Asks for the whole of a unit's part of an image that lies in one piece, `ahead` bytes from
  // here.
  void ask_for_next() {
    const bool reads_squares = kSquares && kind.squares && squares.reads_plain_rows();
    if (!(reads_image || reads_squares) || call.segments > 1) return;
    int64_t strips = 0;
    for (int l = 0; l < call.depth; ++l) {
      const Level& level = kind.levels[l];
      if (level.by_rows) strips += strips_of<T>(level.c_out, level.out_h, level.out_w);
      if (kind.squares) strips += strips_of_squares<T>(level.c_out, level.out_h, kind.squares);
    }
    soon = Soon::of<T>(call.x, offset_of(call.x, n, unit.in_channel, 0, 0), kind.levels[0].c_in,
                       strips);
  }

  void run(int64_t y0, int64_t y1, Moments* moments) {
    start(y0);
    ask_for_next();
    for (int64_t y = y0; y < y1; y += kind.step) {
      const int64_t end = at_most(y + kind.step, y1);
      if (direct(moments)) {
        T* out = static_cast<T*>(const_cast<void*>(call.y.data)) +
                 offset_of(call.y, n, place_of(call.y, unit.out, 0), y, 0);
        if (end - y == last().out_h && leaves_whole(out)) {
          const int64_t plane = last().out_h * last().out_w;
          run_level(call.depth - 1, y, end, finished, plane, last().out_w, call.out);
          copy_around(finished, out, last().c_out * plane);
          continue;
        }
        run_level(call.depth - 1, y, end, out, call.y.stride_c * step_of(call.y, unit.out),
                  call.y.stride_h, call.out, call.around);
        continue;
      }
      run_level(call.depth - 1, y, end, finished, kind.out_plane, finished_row(), call.out);
      const bool stores = moments && call.y.data && !call.residual.data &&
                          call.lanes == call.y.lanes && has_plain_rows<T>(call.y);
      if (moments) add_moments_of_rows(y, end - y, moments, stores);
      if (stores || !call.y.data) continue;
      if (call.residual.data) add_residual(y, end);
      for (int c = 0; c < last().c_out; ++c) {
        const T* plane = finished + c * kind.out_plane;
        const int64_t channel = place_of(call.y, unit.out, c);
        if (call.lanes > call.y.lanes) {
          stage_out(call.y, n, {channel, channel + 1, y, end, call.lanes}, plane, kind.out_plane,
                    call.around);
        } else {
          store_planes(call.y, n, channel, 1, y, end - y, plane, kind.out_plane, finished_row());
        }
      }
    }
  }
};

// Input rows from which a unit makes output rows [y0, y1).
BUNIT_INLINE Window input_rows(const ForwardCall& call, const Kind& kind, int64_t y0, int64_t y1) {
  for (int l = call.depth - 1; l > 0; --l) {
    const Level& level = kind.levels[l];
    y0 = at_least(first_made(kind, l, y0) - level.pad, 0);
    y1 = last_made(kind, l, y1 + level.reach) - level.pad;
    y1 = at_least(at_most(y1, kind.levels[l - 1].out_h), y0);
  }
  const Level& level = kind.levels[0];
  return {at_most(at_least(y0 * call.stride - level.pad, 0), call.x.h),
          at_most(at_least((y1 + level.reach) * call.stride - level.pad, 0), call.x.h)};
}

// Segments begin with even rows, as tiles do.
BUNIT_INLINE int64_t first_row(const ForwardCall& call, int64_t segment) {
  return at_most((call.y.h + 1) / 2 * segment / call.segments * 2, call.y.h);
}

// Units [first, last) of image n (of `lanes` images from n * lanes on), output rows of one segment.
template <class T>
void forward_item(const ForwardCall& given, int64_t n, int64_t first, int64_t last, int64_t segment,
                  void* scratch) {
  ForwardCall call = given;
  T* memory = static_cast<T*>(scratch);
  const int64_t y0 = first_row(call, segment), y1 = first_row(call, segment + 1);
  const PackedUnit &begin = call.units[first], &end = call.units[last - 1];
  // What is read next is mostly that of the units behind those of `channels` channels.
  const auto set_ahead = [&](int64_t channels) {
    call.x.ahead = bytes_ahead(call.x, call.lanes, channels * call.x.stride_c);
  };

  if (given.x.is_interleaved()) {
    set_ahead(end.in_channel + end.kind->levels[0].c_in - begin.in_channel);
    Window rows{call.x.h, 0};
    for (int64_t u = first; u < last; ++u) {
      const Window own = input_rows(call, *call.units[u].kind, y0, y1);
      rows = {at_most(rows.begin, own.begin), at_least(rows.end, own.end)};
    }
    const Region region{begin.in_channel, end.in_channel + end.kind->levels[0].c_in, rows.begin,
                        at_least(rows.end, rows.begin), given.lanes};
    call.x = stage_in(call.x, n, region, memory);
    memory += region.size(given.x);
  }
  const Region out{begin.out.first, end.out.first + end.out.count, y0, y1, given.lanes};
  if (given.residual.is_interleaved()) {
    call.residual = stage_in_outputs(given.residual, n, call.units, first, last, out, memory);
    memory += out.size(given.residual);
  }
  T* staged = memory;
  if (given.y.is_interleaved()) {
    call.y = planes_of(given.y, out, staged);
    call.around = call.around_whole = false;
    memory += out.size(given.y);
  }

  for (int64_t u = first; u < last; ++u) {
    const PackedUnit& unit = call.units[u];
    if (!given.x.is_interleaved()) set_ahead(unit.kind->levels[0].c_in);
    Moments* moments = nullptr;
    if (call.moments) {
      moments = call.moments + (n * call.segments + segment) * call.y.c + unit.out.first;
      for (int64_t c = 0; c < unit.out.count; ++c) moments[c] = {};
    }
    UnitForward<T>(call, unit, n, memory).run(y0, y1, moments);
  }
  if (given.y.is_interleaved()) {
    stage_out_outputs(given.y, n, call.units, first, last, out, staged, given.around);
  }
}

}  // namespace bunit::BUNIT_ISA
