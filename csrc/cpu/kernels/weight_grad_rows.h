// The gradient of a 3x3 level's weight of stride 1, on rows that fill their vectors (fills_rows):
// down a column of vectors, so that what is loaded of the input once serves the three rows of
// gradients it meets, and these stay in registers for three rows of input. By runs of flat planes
// (WeightGrad) a multiplication waits for two loads, most of which straddle cache lines.
#pragma once

#include "vec.h"

namespace bunit::BUNIT_ISA {

// Rows of an image's channels, or of planes in its place.
template <class T>
struct ImageRows {
  const T* data;  // of channel 0, where row 0 is or would be
  int64_t row, plane;

  const T* at(int c, int64_t y) const { return data + c * plane + y * row; }
};

// Down a column of `rows` rows, two or more: sums[c][ky * 3 + kx] += products of lanes of
// `Channels` channels of gradients, the first row of which is at `g`, and of the rows of input from
// `x` on, which begin one above; with `top` or `bottom` there is none above or below. load_grad(at)
// and load_in(at, kx) read the vectors of a row.
// add_one(sum, grad, value) is sum += grad * value, in the form with which the compiler (GCC 12)
// keeps all sums of this caller in registers.
template <class T, int Channels, class LoadGrad, class LoadIn, class AddOne>
BUNIT_INLINE void add_column(const T* g, const ImageRows<T>& grad, const T* x,
                             const ImageRows<T>& in, int64_t rows, bool top, bool bottom,
                             LoadGrad load_grad, LoadIn load_in, AddOne add_one,
                             Vec<T> (&sums)[Channels][9]) {
  Vec<T> grads[3][Channels];  // of the row of the input, and of one and two above
  const auto shift = [&]() BUNIT_ALWAYS {
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
      grads[2][c] = grads[1][c];
      grads[1][c] = grads[0][c];
    }
  };
  const auto next = [&]() BUNIT_ALWAYS {
    shift();
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) grads[0][c] = load_grad(g + c * grad.plane);
    g += grad.row;
  };
  // Rows `First` to `Last` of the kernel meet a gradient.
  const auto add = [&]<int First, int Last>() BUNIT_ALWAYS {
#pragma GCC unroll 16
    for (int kx = 0; kx < 3; ++kx) {
      const Vec<T> v = load_in(x, kx);
#pragma GCC unroll 16
      for (int ky = First; ky <= Last; ++ky) {
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) add_one(sums[c][ky * 3 + kx], grads[ky][c], v);
      }
    }
    x += in.row;
  };
  next();
  if (top) {
    x += in.row;
  } else {
    add.template operator()<0, 0>();
  }
  next();
  add.template operator()<0, 1>();
#pragma GCC unroll 3
  for (int64_t y = 2; y < rows; ++y) {
    next();
    add.template operator()<0, 2>();
  }
  shift();
  add.template operator()<1, 2>();
  if (bottom) return;
  shift();
  add.template operator()<2, 2>();
}

// out[c_out][c_in][3][3] += sum over pixels of grad * in. Planes of rows `row` elements apart, a
// pixel `lanes` elements after the other; `rows` is two or more, `width` the elements of a row.
template <class T>
struct WeightGradRows {
  const ImageRows<T> grad;
  const ImageRows<T> in;  // row and column 0 are where the first tap of the first pixel is
  int64_t rows, width, lanes;

  void run(int c_out, int c_in, T* out) const {
    constexpr int kChannels = BUNIT_REGISTERS == 32 ? 2 : 1;  // 9 sums each, and 3 gradients
    for (int p = 0; p < c_in; ++p) {
      int c = 0;
      for (; c + kChannels <= c_out; c += kChannels) block<kChannels>(c, p, c_in, out);
      for (; c < c_out; ++c) block<1>(c, p, c_in, out);
    }
  }

 private:
  template <int Channels>
  void block(int c, int p, int c_in, T* out) const {
    Vec<T> sums[Channels][9];
#pragma GCC unroll 16
    for (int i = 0; i < Channels; ++i) {
#pragma GCC unroll 16
      for (int t = 0; t < 9; ++t) sums[i][t] = Vec<T>{};
    }
    const auto column = [&](int64_t left, auto load_at) BUNIT_ALWAYS {
      const auto load_in = [&](const T* x, int kx) BUNIT_ALWAYS { return load_at(x + kx * lanes); };
      add_column<T, Channels>(
          grad.at(c, 0) + left, grad, in.at(p, 0) + left, in, rows, false, false, load_at, load_in,
          [](Vec<T>& sum, Vec<T> grad, Vec<T> v) BUNIT_ALWAYS { sum += grad * v; }, sums);
    };
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) {
      column(i, [](const T* at) BUNIT_ALWAYS { return load(at); });
    }
    if (i < width) {  // what lies beside the row is cleared, should it be infinite or NaN
      const Mask<T> valid = first_lanes<T>(width - i);
      column(i, [&](const T* at) BUNIT_ALWAYS { return keep<T>(load(at), valid); });
    }
    T totals[Channels * 9];
    sum_each<T>(&sums[0][0], Channels * 9, totals);
    for (int k = 0; k < Channels; ++k) {
      T* target = out + (int64_t(c + k) * c_in + p) * 9;
      for (int t = 0; t < 9; ++t) target[t] += totals[k * 9 + t];
    }
  }
};

// The same where rows have no padding: lanes beside the image's edges are masked. Rows [y0, y1) of
// an image of `height` rows, two of them or more.
template <class T>
struct UnpaddedWeightGrad {
  const ImageRows<T>&grad, &in;
  int64_t y0, y1, height, width;

  // sums[c_out][c_in][3][3], a vector each, += products of lanes.
  void add(int c_out, int c_in, Vec<T>* sums) const {
    for (int p = 0; p < c_in; ++p) {
      int c = 0;
      for (; c + 2 <= c_out; c += 2) block<2>(c, p, c_in, sums);
      for (; c < c_out; ++c) block<1>(c, p, c_in, sums);
    }
  }

 private:
  static constexpr int64_t kN = kLanes<T>;

  template <int Channels>
  void block(int c, int p, int c_in, Vec<T>* sums) const {
    Vec<T> acc[Channels][9];
    const auto at = [&](int i) { return sums + (int64_t(c + i) * c_in + p) * 9; };
#pragma GCC unroll 16
    for (int i = 0; i < Channels; ++i) {
#pragma GCC unroll 16
      for (int t = 0; t < 9; ++t) acc[i][t] = at(i)[t];
    }
    if (width == kN) {
      column<Channels, true, true, true>(c, p, 0, acc);
    } else {
      column<Channels, true, false, true>(c, p, 0, acc);
      int64_t x = kN;
      for (; x + kN < width; x += kN) column<Channels, false, false, true>(c, p, x, acc);
      if (x + kN == width) {
        column<Channels, false, true, true>(c, p, x, acc);
      } else {
        column<Channels, false, true, false>(c, p, x, acc);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Channels; ++i) {
#pragma GCC unroll 16
      for (int t = 0; t < 9; ++t) at(i)[t] = acc[i][t];
    }
  }

  // The vector of columns from `left` on, with which rows begin or end; `Whole`, or their rest.
  template <int Channels, bool Begins, bool Ends, bool Whole>
  BUNIT_INLINE void column(int c, int p, int64_t left, Vec<T> (&acc)[Channels][9]) const {
    const auto all = LaneBits((1 << (Whole ? kN : width - left)) - 1);
    add_column<T, Channels>(
        grad.at(c, y0) + left, grad, in.at(p, y0 - 1) + left - 1, in, y1 - y0, y0 == 0,
        y1 == height,
        [&](const T* at) BUNIT_ALWAYS { return Whole ? load(at) : load_lanes(at, all); },
        [&](const T* x, int kx) BUNIT_ALWAYS {
          const bool masked = !Whole || (kx == 0 && Begins) || (kx == 2 && Ends);
          const auto lanes = LaneBits(kx == 0 && Begins ? all & ~1
                                      : kx == 2 && Ends ? all / 2
                                                        : all);
          return masked ? load_lanes(x + kx, lanes) : load(x + kx);
        },
        [](Vec<T>& sum, Vec<T> grad, Vec<T> v) BUNIT_ALWAYS { add_product<T>(sum, grad, v); }, acc);
  }
};

// out[c] += sum of `rows` rows of `columns` elements of channel c.
template <class T>
void add_bias_grads(const ImageRows<T>& grad, int64_t rows, int64_t columns, int channels, T* out) {
  const bool dense = grad.row == columns;
  const int64_t width = dense ? rows * columns : columns;
  for (int c = 0; c < channels; ++c) {
    Vec<T> total{};
    for (int64_t y = 0; y < (dense ? 1 : rows); ++y) {
      const T* row = grad.at(c, y);
      int64_t i = 0;
      for (; i + kLanes<T> <= width; i += kLanes<T>) total += load(row + i);
      if (i < width) total += load_first(row + i, width - i);
    }
    out[c] += sum<T>(total);
  }
}

}  // namespace bunit::BUNIT_ISA
