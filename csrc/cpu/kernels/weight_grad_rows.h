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

}  // namespace bunit::BUNIT_ISA
