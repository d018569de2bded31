// All levels of one unit in squares (squares.h) over some rows of one image: each level's input is
// kept in planes of squares, of which the next step reuses what it needs.
#pragma once

#include "planes.h"
#include "squares_wide.h"

namespace bunit::BUNIT_ISA {

template <class T>
struct SquaresForward {
  // Rows [begin, end) that a level's planes hold, the first one even.
  struct Window {
    int64_t begin, end;
  };

  const ForwardCall& call;
  const PackedUnit& unit;
  const Kind& kind;
  int64_t n;
  T* spare;  // three rows
  T* buffers[kLevels];
  Window windows[kLevels];
  SquareMap maps[kLevels];

  SquaresForward(const ForwardCall& call, const PackedUnit& unit, int64_t n, T* spare)
      : call(call), unit(unit), kind(*unit.kind), n(n), spare(spare) {}

  // Takes memory from `scratch` on; returns what follows it.
  T* place(T* scratch) {
    for (int l = 0; l < call.depth; ++l) {
      const Level& level = kind.levels[l];
      maps[l] = {kind.squares, level.plane / 4, level.plane, kind.has_left, kind.has_right};
      buffers[l] = with_aligned(scratch, kind.squares);
      scratch = buffers[l] + level.c_in * level.plane;
    }
    return scratch;
  }

  bool reads_plain_rows() const { return has_plain_rows<T>(call.x); }

  // Nothing is kept of what output rows from `y0`, even, on are made of.
  void start(int64_t y0) {
    for (int l = call.depth - 1; l >= 0; --l) {
      const int64_t begin = at_least(y0 - 2, 0);
      // Of the first rows of an image only one is read.
      windows[l] = {begin, l == 0 ? at_least(y0 - 1, 0) : begin};
      if (begin == 0) clear_row(l, -1);
      y0 = begin;
    }
  }

  // Output rows [y0, y1) of the last level, y0 even, to `target`.
  template <class Target>
  void make(int64_t y0, int64_t y1, Activation activation, const Target& target, Soon* soon) {
    run(call.depth - 1, y0, y1, activation, target, soon);
  }

 private:
  // The first square of row y, which may lie beside the image, in the quarter of the row's even
  // columns.
  T* at(int l, int64_t y) const {
    const int64_t pair = (y + 2 - windows[l].begin) / 2;
    return buffers[l] + pair * kind.squares + (y & 1) * 2 * maps[l].quarter;
  }

  void clear_row(int l, int64_t y) {
    T* row = at(l, y);
    for (int c = 0; c < kind.levels[l].c_in; ++c, row += maps[l].plane) {
      clear_squares(row);
      clear_squares(row + maps[l].quarter);
    }
  }
  void clear_squares(T* row) const {
    if (has_one_row()) return store(row, Vec<T>{});
    memset(row, 0, sizeof(Vec<T>) / 2);
  }

  template <class Target>
  void run(int l, int64_t y0, int64_t y1, Activation activation, const Target& target, Soon* soon) {
    const bool feeds = l == 0 && reads_plain_rows();
    // What is fed is so a vector early, that nothing waits for it.
    const int64_t end = needed(l, y1), first = feeds ? at_most(y0 + 2 * rows_at_once(), end) : end;
    fill(l, y0, first, end, soon);
    const FromPlanes<T> source{at(l, y0), maps[l]};
    const FedPlanes<T> fed{source, image_rows(), first, end, at(l, first)};
    if (feeds) windows[0].end = at_least(windows[0].end, end);
    const Level& level = kind.levels[l];
    const int64_t squares = (y1 - y0 + 1) / 2 * kind.squares;
    conv_squares<T>(source, feeds ? &fed : nullptr, level.c_in,
                    static_cast<const T*>(unit.weights[l]), static_cast<const T*>(unit.biases[l]),
                    level.c_out, activation, target, (squares + kLanes<T> - 1) / kLanes<T>, soon);
  }

  // Whether a vector of squares is of one row of them, not of two.
  bool has_one_row() const { return kind.squares == kLanes<T>; }
  int64_t rows_at_once() const { return has_one_row() ? 2 : 4; }
  // Of the second vector of a row, or of that of the second row.
  LaneBits rest_lanes() const {
    return has_one_row() ? LaneBits((1 << (call.x.w - kLanes<T>)) - 1) : kAllLanes;
  }

  SquareRows<T> image_rows() const {
    const Image& x = call.x;
    const T* in = static_cast<const T*>(x.data) + offset_of(x, n, unit.in_channel, 0, 0);
    return {in, x.stride_h, x.stride_c, kind.levels[0].c_in, has_one_row(), rest_lanes()};
  }

  // Behind the last row of level l's planes that its output rows up to y1 are made of.
  int64_t needed(int l, int64_t y1) const {
    return at_most(y1 + (y1 & 1) + (l == 0 ? 1 : 2), call.x.h);
  }

  // Makes sure that level l's planes hold their rows up to `end`, of those of which its output rows
  // from y0 on are made; `last` is behind the last that they will hold.
  void fill(int l, int64_t y0, int64_t end, int64_t last, Soon* soon) {
    Window& window = windows[l];
    const int64_t begin = at_least(y0 - 2, 0);
    if (begin > window.begin) keep_from(l, begin);
    if (window.end < end) {
      if (l == 0) {
        load_rows(window.end, end);
      } else {
        const ToPlanes<T> target{at(l, window.end), maps[l]};
        run(l - 1, window.end, end, call.hidden, target, soon);
      }
      window.end = end;
    }
    if (last < call.x.h) return;
    // What is behind the image, the rest of squares that it cuts off too; rows that are kept move.
    if (last % 2 == 1) clear_row(l, last);
    clear_row(l, last + last % 2);
  }

  void keep_from(int l, int64_t begin) {
    Window& window = windows[l];
    const int64_t pairs = (window.end - begin + 1) / 2;
    const T* from = at(l, begin);
    window.begin = begin;
    T* to = at(l, begin);
    // Upward, so that nothing is overwritten before it is read; calls of memmove would take longer.
    for (int64_t q = 0; q < 4 * kind.levels[l].c_in; ++q) {
      for (int64_t t = 0; t < pairs * kind.squares; t += kLanes<T>) store(to + t, load(from + t));
      to += maps[l].quarter;
      from += maps[l].quarter;
    }
  }

  void load_rows(int64_t y0, int64_t y1) {
    const Image& x = call.x;
    if (reads_plain_rows()) {
      const SquareRows<T> rows = image_rows();
      return for_each_turned(y0, y1,
                             [&](int64_t y) BUNIT_ALWAYS { rows.turn(y, y1, maps[0], at(0, y)); });
    }
    // Row by row, or two of them where they are side by side, by way of rows as an image has them.
    const ReadPixels reader{x, n};
    const SquareRows<T> rows{spare, kind.row, 0, 1, has_one_row(), rest_lanes()};
    for (int c = 0; c < kind.levels[0].c_in; ++c) {
      for_each_turned(y0, y1, [&](int64_t y) {
        reader(unit.in_channel + c, y, 0, 1, spare, x.w);
        if (!has_one_row() && y + 2 < y1) {
          reader(unit.in_channel + c, y + 2, 0, 1, spare + 2 * kind.row, x.w);
        }
        rows.turn(0, y1 - y, maps[0], at(0, y) + c * maps[0].plane);
      });
    }
  }

  // Calls turn(y) for the rows of [y0, y1) or, where two are side by side, the upper ones.
  template <class F>
  BUNIT_INLINE void for_each_turned(int64_t y0, int64_t y1, F turn) const {
    for (int64_t y = y0; y < y1; ++y) {
      if (has_one_row() || (y - y0) % 4 < 2) turn(y);
    }
  }
};

}  // namespace bunit::BUNIT_ISA
