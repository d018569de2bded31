// 3x3 convolutions of stride 1 in squares of 2x2 outputs: Winograd's minimal filtering F(2x2, 3x3),
// 16 products of a pair of channels where pairs of rows (row_sums.h) take 24 and taps 36, for rows
// that fill a vector of squares or half of one.
//
// A plane lies in quarters, its even and odd rows and columns apart, so that a vector holds the
// same pixel of a vector of squares, and of what is transformed only two columns need their
// neighbour's lane. With d the 4x4 inputs of a square, g the kernel: Y = A' [(G g G') . (B' d B)]
// A, where B' d = (d0 - d2, d1 + d2, d2 - d1, d1 - d3) and A' m = (m0 + m1 + m2, m1 - m2 - m3)
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). All of it stays
// in registers: rows of B' d B come one after the other, and products of columns 0 and 3 are added
// to the sum and the difference of those of columns 1 and 2.
//
// An output's sums take in its own nine inputs and no others, so that NaN stays where it would be;
// infinity may become NaN there, as it may in any sum.
#pragma once

#include "square_planes.h"

namespace bunit::BUNIT_ISA {

template <class T, int N>
__attribute__((noinline)) void activate_sums(Activation activation, Vec<T> (&sums)[N]) {
  activate_in_place(activation, reinterpret_cast<T*>(sums), N * kLanes<T>);
}

// Sums of products of `Out` output channels in a vector of squares.
template <class T, int Out>
struct SquareSums {
  Vec<T> y[Out][2][2];

  // Those of `In` input channels, at most kSquareInputs. Weights in the order in which they are
  // used, as pack_squares puts them.
  template <int In, class Source>
  BUNIT_INLINE void make(const Source& in, const T* w, const T* bias) {
    const auto sum = [](Vec<T> a, Vec<T> b) BUNIT_ALWAYS { return a + b; };
    const auto difference = [](Vec<T> a, Vec<T> b) BUNIT_ALWAYS { return a - b; };
    w = add_row<In, true, 1, 2>(in, sum, w, bias, [](auto& y, auto s, auto d) BUNIT_ALWAYS {
      y[0][0] = s;
      y[0][1] = d;
    });
    w = add_row<In, false, 2, 1>(in, difference, w, bias, [](auto& y, auto s, auto d) BUNIT_ALWAYS {
      y[1][0] = y[0][0] - s;
      y[1][1] = y[0][1] - d;
      y[0][0] += s;
      y[0][1] += d;
    });
    w = add_row<In, false, 0, 2>(in, difference, w, bias, [](auto& y, auto s, auto d) BUNIT_ALWAYS {
      y[0][0] += s;
      y[0][1] += d;
    });
    add_row<In, false, 1, 3>(in, difference, w, bias, [](auto& y, auto s, auto d) BUNIT_ALWAYS {
      y[1][0] += s;
      y[1][1] += d;
    });
  }

  // Activates them and puts them into `target`.
  template <class Target>
  BUNIT_INLINE void put(Activation activation, const Target& target, int64_t vector) const {
    Vec<T> z[Out][2][2];
#pragma GCC unroll 16
    for (int k = 0; k < 4 * Out; ++k) z[k / 4][k / 2 % 2][k % 2] = y[k / 4][k / 2 % 2][k % 2];
    if (activation == Activation::relu) {
#pragma GCC unroll 16
      for (int k = 0; k < 4 * Out; ++k) {
        z[k / 4][k / 2 % 2][k % 2] = max0<T>(z[k / 4][k / 2 % 2][k % 2]);
      }
    } else if (activation != Activation::identity) {
      Vec<T> copy[4 * Out];  // of which the address may be taken
#pragma GCC unroll 16
      for (int k = 0; k < 4 * Out; ++k) copy[k] = z[k / 4][k / 2 % 2][k % 2];
      activate_sums<T>(activation, copy);
#pragma GCC unroll 16
      for (int k = 0; k < 4 * Out; ++k) z[k / 4][k / 2 % 2][k % 2] = copy[k];
    }
#pragma GCC unroll 4
    for (int c = 0; c < Out; ++c) target.put(vector, c, z[c]);
  }

 private:
  // Of one row of B' d B, combine(d's row A, its row B) transformed, the products with its weights.
  template <int In, bool Biased, int A, int B, class Source, class F, class G>
  BUNIT_INLINE const T* add_row(const Source& in, F combine, const T* w, const T* bias, G finish) {
    Columns<T> x[In];
    Vec<T> v[In][2];
#pragma GCC unroll 4
    for (int c = 0; c < In; ++c) {
      x[c] = in.get(c, A, B, combine);
      v[c][0] = x[c].even + x[c].odd;
      v[c][1] = x[c].odd - x[c].even;
    }
    Vec<T> inner[Out][2];
#pragma GCC unroll 4
    for (int o = 0; o < Out; ++o) {
#pragma GCC unroll 4
      for (int c = 0; c < In; ++c) {
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k, ++w) {
          if (c > 0) {
            add_scaled<T>(inner[o][k], *w, v[c][k]);
          } else if (Biased && k == 0) {  // is in all four once
            inner[o][k] = splat<T>(bias[o]);
            add_scaled<T>(inner[o][k], *w, v[c][k]);
          } else {
            inner[o][k] = splat<T>(*w) * v[c][k];
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < In; ++c) {
      v[c][0] = zero_before<T>(x[c].odd, in.map.has_left) - x[c].odd;
      v[c][1] = x[c].even - zero_after<T>(x[c].even, in.map.has_right);
    }
#pragma GCC unroll 4
    for (int o = 0; o < Out; ++o) {
      Vec<T> s = inner[o][0] + inner[o][1], d = inner[o][0] - inner[o][1];
#pragma GCC unroll 4
      for (int c = 0; c < In; ++c, w += 2) {
        add_scaled<T>(s, w[0], v[c][0]);
        add_scaled<T>(d, w[1], v[c][1]);
      }
      finish(y[o], s, d);
    }
    return w;
  }
};

// `vectors` vectors of squares of `Out` output channels.
template <class T, int In, int Out, class Source, class Target>
struct SquareStrip {
  static void run(const Source& source, const T* weights, const T* bias, Activation activation,
                  const Target& target, int64_t vectors, Soon* soon) {
    Source in = source;
    for (int64_t i = 0; i < vectors; ++i, in.skip_vector()) {
      if (soon) soon->ask();
      in.feed();
      const T* w = weights;
      asm("" : "+r"(w));  // or the address of each is worked out beforehand
      SquareSums<T, Out> sums;
      sums.template make<In>(in, w, bias);
      sums.put(activation, target, i);
    }
  }
};

template <class T, class Source, class Target>
using SquareStripFn = void (*)(const Source&, const T*, const T*, Activation, const Target&,
                               int64_t, Soon*);

template <class T, int Out, class Source, class Target>
BUNIT_INLINE SquareStripFn<T, Source, Target> square_strip(int c_in) {
  switch (c_in) {
    case 1:
      return &SquareStrip<T, 1, Out, Source, Target>::run;
    case 2:
      return &SquareStrip<T, 2, Out, Source, Target>::run;
    case 3:
      return &SquareStrip<T, 3, Out, Source, Target>::run;
    default:
      return &SquareStrip<T, 4, Out, Source, Target>::run;
  }
}

// Activated sums, plus bias[c] where there is one, of a block of at most kBlock output channels in
// `vectors` vectors of squares.
template <class T, class Source, class Target>
BUNIT_INLINE void run_squares(const Source& source, int c_in, const T* weights, const T* bias,
                              int block, Activation activation, const Target& target,
                              int64_t vectors, Soon* soon) {
  const SquareStripFn<T, Source, Target> run =
      block == 1   ? square_strip<T, 1, Source, Target>(c_in)
      : block == 2 ? square_strip<T, 2, Source, Target>(c_in)
      : block == 3 ? square_strip<T, 3, Source, Target>(c_in)
                   : square_strip<T, 4, Source, Target>(c_in);
  run(source, weights, bias ? bias : kZeros<T>, activation, target, vectors, soon);
}

}  // namespace bunit::BUNIT_ISA
