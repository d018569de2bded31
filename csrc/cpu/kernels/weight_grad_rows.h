// The gradient of a 3x3 level's weight of stride 1, on rows that fill their vectors (fills_rows):
// down a column of vectors, so that what is loaded of the input once serves the three rows of
// gradients it meets, and these stay in registers for three rows of input. By runs of flat planes
// (WeightGrad) a multiplication waits for two loads, most of which straddle cache lines.
#pragma once

#include "vec.h"

namespace bunit::BUNIT_ISA {

// out[c_out][c_in][3][3] += sum over pixels of grad * in. Planes of rows `row` elements apart, a
// pixel `lanes` elements after the other; `rows` is two or more, `width` the elements of a row.
template <class T>
struct WeightGradRows {
  const T* grad;
  int64_t grad_plane;
  const T* in;  // where the first tap of the first pixel is
  int64_t in_plane;
  int64_t row, rows, width, lanes;

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
    const T *g = grad + c * grad_plane, *x = in + p * in_plane;
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) {
      column<Channels>(g + i, x + i, sums, [](const T* at) BUNIT_ALWAYS { return load(at); });
    }
    if (i < width) {  // what lies beside the row is cleared, should it be infinite or NaN
      const Mask<T> valid = first_lanes<T>(width - i);
      column<Channels>(g + i, x + i, sums,
                       [&](const T* at) BUNIT_ALWAYS { return keep<T>(load(at), valid); });
    }
    T totals[Channels * 9];
    sum_each<T>(&sums[0][0], Channels * 9, totals);
    for (int k = 0; k < Channels; ++k) {
      T* target = out + (int64_t(c + k) * c_in + p) * 9;
      for (int t = 0; t < 9; ++t) target[t] += totals[k * 9 + t];
    }
  }

  template <int Channels, class Load>
  BUNIT_INLINE void column(const T* g, const T* x, Vec<T> (&sums)[Channels][9],
                           Load load_at) const {
    Vec<T> grads[3][Channels];  // of the row of the input, and of one and two above
    const auto next = [&]() BUNIT_ALWAYS {
#pragma GCC unroll 16
      for (int c = 0; c < Channels; ++c) {
        grads[2][c] = grads[1][c];
        grads[1][c] = grads[0][c];
        grads[0][c] = load_at(g + c * grad_plane);
      }
      g += row;
    };
    // Rows `First` to `Last` of the kernel meet a gradient.
    const auto add = [&]<int First, int Last>() BUNIT_ALWAYS {
#pragma GCC unroll 16
      for (int kx = 0; kx < 3; ++kx) {
        const Vec<T> v = load_at(x + kx * lanes);
#pragma GCC unroll 16
        for (int ky = First; ky <= Last; ++ky) {
#pragma GCC unroll 16
          for (int c = 0; c < Channels; ++c) sums[c][ky * 3 + kx] += grads[ky][c] * v;
        }
      }
      x += row;
    };
    next();
    add.template operator()<0, 0>();
    next();
    add.template operator()<0, 1>();
#pragma GCC unroll 3
    for (int64_t y = 2; y < rows; ++y) {
      next();
      add.template operator()<0, 2>();
    }
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
      grads[2][c] = grads[1][c];
      grads[1][c] = grads[0][c];
    }
    add.template operator()<1, 2>();
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) grads[2][c] = grads[1][c];
    add.template operator()<2, 2>();
  }
};

// Rows of an image's channels without padding, or of planes in its place.
template <class T>
struct ImageRows {
  const T* data;  // of channel 0, where row 0 is or would be
  int64_t row, plane;

  const T* at(int c, int64_t y) const { return data + c * plane + y * row; }
};

// The same where rows have no padding: lanes beside the image's edges are masked. Columns are
// vectors of the rows [y0, y1) of an image of `height` rows, two of them or more.
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

  // The vector of columns from `left` on, with which rows begin or end.
  template <int Channels, bool Begins, bool Ends, bool Whole>
  BUNIT_INLINE void column(int c, int p, int64_t left, Vec<T> (&acc)[Channels][9]) const {
    const auto all = LaneBits((1 << (Whole ? kN : width - left)) - 1);
    const T *g = grad.at(c, y0) + left, *x = in.at(p, y0 - 1) + left - 1;
    Vec<T> grads[3][Channels];  // of the row of the input, and of one and two above
    const auto shift = [&]() BUNIT_ALWAYS {
#pragma GCC unroll 16
      for (int i = 0; i < Channels; ++i) {
        grads[2][i] = grads[1][i];
        grads[1][i] = grads[0][i];
      }
    };
    const auto next = [&]() BUNIT_ALWAYS {
      shift();
#pragma GCC unroll 16
      for (int i = 0; i < Channels; ++i) {
        const T* from = g + i * grad.plane;
        grads[0][i] = Whole ? load(from) : load_lanes(from, all);
      }
      g += grad.row;
    };
    // Rows `First` to `Last` of the kernel meet a gradient.
    const auto add = [&]<int First, int Last>() BUNIT_ALWAYS {
#pragma GCC unroll 16
      for (int kx = 0; kx < 3; ++kx) {
        const bool masked = !Whole || (kx == 0 && Begins) || (kx == 2 && Ends);
        const auto lanes = LaneBits(kx == 0 && Begins ? all & ~1 : kx == 2 && Ends ? all / 2 : all);
        const Vec<T> v = masked ? load_lanes(x + kx, lanes) : load(x + kx);
#pragma GCC unroll 16
        for (int ky = First; ky <= Last; ++ky) {
#pragma GCC unroll 16
          for (int i = 0; i < Channels; ++i) add_product<T>(acc[i][ky * 3 + kx], grads[ky][i], v);
        }
      }
      x += in.row;
    };
    next();
    if (y0 > 0) {
      add.template operator()<0, 0>();
    } else {
      x += in.row;
    }
    next();
    add.template operator()<0, 1>();
#pragma GCC unroll 3
    for (int64_t y = y0 + 2; y < y1; ++y) {
      next();
      add.template operator()<0, 2>();
    }
    shift();
    add.template operator()<1, 2>();
    if (y1 == height) return;
    shift();
    add.template operator()<2, 2>();
  }
};

template <class T>
__attribute__((noinline)) void add_weight_grads(const ImageRows<T>& grad, const ImageRows<T>& in,
                                                int64_t y0, int64_t y1, int64_t height,
                                                int64_t width, int c_out, int c_in, Vec<T>* sums) {
  UnpaddedWeightGrad<T>{grad, in, y0, y1, height, width}.add(c_out, c_in, sums);
}

}  // namespace bunit::BUNIT_ISA
