// Planes of squares of 2x2 pixels, in which squares.h works: image rows turned into them, and sums
// out of them into rows.
#pragma once

#include "conv_rows.h"

namespace bunit::BUNIT_ISA {

// Whether units are worked on in squares: there must be registers for it, and lanes that shift.
constexpr bool kSquares = BUNIT_VECTOR_BYTES == 64;

// Squares in a row of a plane of images `width` pixels wide, idle ones too; 0: rows neither fill a
// vector of squares nor are half of one.
template <class T>
int64_t squares_of_row(int64_t width) {
  constexpr int64_t kN = kLanes<T>;
  if (!kSquares || width % 2 != 0) return 0;
  if (width == kN) return kN / 2;
  return width <= 2 * kN && width * 8 >= 2 * kN * 7 ? kN : 0;
}

// Where pixels lie in planes of squares, in elements: the square of rows 2p and 2p + 1, columns 2t
// and 2t + 1, is element p * run + t of each quarter (even rows' even columns, their odd columns,
// odd rows' even columns, their odd columns). What lies beside an image is not there but zero.
struct SquareMap {
  int64_t run, quarter, plane;
  LaneBits has_left, has_right;  // squares of a vector that are not the first, or last, of a row
};

template <class T>
struct Columns {
  Vec<T> even, odd;
};

// The even and the odd lanes of a and b one after the other. By lanes of 128 bits and within them:
// on a Zen 4 permutations of single elements took half as long again.
template <class T>
BUNIT_INLINE Columns<T> columns_of(Vec<T> first, Vec<T> second) {
#if BUNIT_VECTOR_BYTES == 64
  const auto a = (__m512)first, b = (__m512)second;
  const __m512 x = _mm512_maskz_shuffle_f32x4(kAllLanes, a, b, 0x88);
  const __m512 y = _mm512_maskz_shuffle_f32x4(kAllLanes, a, b, 0xdd);
  if constexpr (sizeof(T) == 8) {
    return {(Vec<T>)_mm512_maskz_unpacklo_pd(0xff, (__m512d)x, (__m512d)y),
            (Vec<T>)_mm512_maskz_unpackhi_pd(0xff, (__m512d)x, (__m512d)y)};
  } else {
    return {(Vec<T>)_mm512_maskz_shuffle_ps(kAllLanes, x, y, 0x88),
            (Vec<T>)_mm512_maskz_shuffle_ps(kAllLanes, x, y, 0xdd)};
  }
#else
  return {first, second};
#endif
}

// Lanes of a and b by turns, from lane `first` on.
template <class T>
BUNIT_INLINE Vec<T> by_turns(Vec<T> a, Vec<T> b, int64_t first) {
  constexpr int kN = kLanes<T>;
  Mask<T> lane{};
#pragma GCC unroll 16
  for (int j = 0; j < kN; ++j) lane[j] = j / 2 + (j % 2) * kN;
  lane += typename VecOf<T>::Int(first) - Mask<T>{};
#if defined(__clang__)
  T lanes[2 * kN], turned[kN];
  memcpy(lanes, &a, sizeof(a));
  memcpy(lanes + kN, &b, sizeof(b));
  for (int j = 0; j < kN; ++j) turned[j] = lanes[lane[j]];
  return load(turned);
#else
  return __builtin_shuffle(a, b, lane);
#endif
}

// Squares' outputs on their way out: to planes of squares, the next level's inputs, or to rows.
template <class T>
struct ToPlanes {
  T* out;
  const SquareMap& map;

  int64_t plane_size() const { return map.plane; }

  BUNIT_INLINE void put(int64_t vector, int c, const Vec<T> (&y)[2][2]) const {
    T* to = out + c * map.plane + vector * kLanes<T>;
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) store(to + q * map.quarter, y[q / 2][q % 2]);
  }
};
template <class T>
struct ToRows {
  T* out;
  int64_t plane, row;
  int64_t rows, width;
  bool one_row;  // whether a vector of squares is of one row of them, not of two
  bool around;

  int64_t plane_size() const { return plane; }

  BUNIT_INLINE void put(int64_t vector, int c, const Vec<T> (&y)[2][2]) const {
    constexpr int kN = kLanes<T>;
    // A row's second vector ends with it.
    const int64_t second = one_row ? width - kN : 2 * row, idle = one_row ? kN - width / 2 : 0;
    const int64_t top = vector * (one_row ? 2 : 4);
    const bool whole = top + (one_row ? 2 : 4) <= rows;
    T* to = out + c * plane + top * row;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Vec<T> first = by_turns<T>(y[i][0], y[i][1], 0);
      const Vec<T> last = by_turns<T>(y[i][0], y[i][1], kN / 2 - idle);
      if (whole && around) {
        store_around(to, first);
        store_around(to + second, last);
      } else {
        if (whole || top + i < rows) store(to, first);
        if (whole || top + i + (one_row ? 0 : 2) < rows) store(to + second, last);
      }
      to = stepped(to, row);
    }
  }
};

// Squares' inputs. `get(c, a, b, combine)` are rows a and b, from 0 on, of channel c's, combined.
template <class T>
struct FromPlanes {
  const T* in;  // the first square of the outputs
  const SquareMap& map;

  BUNIT_INLINE const T* row(int c, int r) const {
    const T* plane = in + c * map.plane;
    return r == 0   ? plane + 2 * map.quarter - map.run
           : r == 1 ? plane
           : r == 2 ? plane + 2 * map.quarter
                    : plane + map.run;
  }
  template <class F>
  BUNIT_INLINE Columns<T> get(int c, int a, int b, F combine) const {
    const T *first = row(c, a), *second = row(c, b);
    return {combine(load(first), load(second)),
            combine(load(first + map.quarter), load(second + map.quarter))};
  }
  BUNIT_INLINE void skip_channels(int count) { in += count * map.plane; }
  BUNIT_INLINE void skip_vector() { in += kLanes<T>; }
  BUNIT_INLINE void feed() {}
};

// Rows of an image turned into planes of squares.
template <class T>
struct SquareRows {
  const T* in;
  int64_t row, plane;
  int channels;
  bool one_row;    // whether a vector of squares is of one row of them, not of two
  LaneBits lanes;  // of a row's second vector

  // Rows y and, where two are side by side, y + 2, of every channel, if there are `rows` of them.
  BUNIT_INLINE void turn(int64_t y, int64_t rows, const SquareMap& map, T* to) const {
    const T* from = in + y * row;
    const int64_t second = one_row ? kLanes<T> : 2 * row;
    const LaneBits kept = one_row || y + 2 < rows ? lanes : LaneBits(0);
    for (int c = 0; c < channels; ++c, from += plane, to += map.plane) {
      const Columns<T> columns = columns_of<T>(load(from), load_lanes(from + second, kept));
      store(to, columns.even);
      store(to + map.quarter, columns.odd);
    }
  }
};

// The same of planes that are filled as they are used.
template <class T>
struct FedPlanes : FromPlanes<T> {
  SquareRows<T> rows;
  int64_t y, end;  // the next row, and behind the last
  T* to;           // where the row goes

  BUNIT_INLINE void feed() {
    if (y >= end) return;
    rows.turn(y, end, this->map, to);
    if (y + 1 < end) rows.turn(y + 1, end, this->map, to + 2 * this->map.quarter);
    y += rows.one_row ? 2 : 4;
    to += kLanes<T>;
  }
};

}  // namespace bunit::BUNIT_ISA
