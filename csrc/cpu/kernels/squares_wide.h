// Sums of squares (squares.h) of many input channels, whose transformed inputs registers do not
// hold: each is made where it is used, and once more for the next block of output channels. That
// takes additions, for which there is time beside the products, and no stores, for which there is
// not: on a Zen 4 one took the time of 1.4 products, and 16 -> 16 channels with transformed inputs
// in memory 1.05 of the time.
#pragma once

#include "squares.h"

namespace bunit::BUNIT_ISA {

// Row R of B' d B times its weights, [c_in][Out][4] with columns 3 negative, summed and turned into
// columns: what it adds to a row of a square's outputs. Returns the weights that follow.
template <class T, int R, int Out, class Source>
BUNIT_INLINE const T* add_wide_row(const Source& in, int c_in, const T* w, const T* bias,
                                   Vec<T> (&columns)[Out][2]) {
  constexpr int kFirst = R == 0 ? 0 : R == 2 ? 2 : 1, kSecond = R < 2 ? 2 : R == 2 ? 1 : 3;
  const auto combine = [](Vec<T> a, Vec<T> b) BUNIT_ALWAYS { return R == 1 ? a + b : a - b; };
  Vec<T> m[Out][4];
#pragma GCC unroll 4
  for (int o = 0; o < Out; ++o) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {  // the bias is in all four outputs once
      m[o][k] = R == 1 && k == 1 ? splat<T>(bias[o]) : Vec<T>{};
    }
  }
  const T *first = in.row(0, kFirst), *second = in.row(0, kSecond);
#pragma GCC unroll 1
  for (int c = 0; c < c_in; ++c, w += 4 * Out) {
    const Vec<T> even = combine(load(first), load(second));
    const Vec<T> odd = combine(load(first + in.map.quarter), load(second + in.map.quarter));
    first += in.map.plane;
    second += in.map.plane;
    Vec<T> v[4] = {zero_before<T>(odd, in.map.has_left) - odd, even + odd, odd - even,
                   even - zero_after<T>(even, in.map.has_right)};
#pragma GCC unroll 4
    for (int i = 1; i <= 4; ++i) {  // columns 0 and 3 wait for their neighbours' lanes
      const int k = i % 4;
      asm("" : "+v"(v[k]));
#pragma GCC unroll 4
      for (int o = 0; o < Out; ++o) add_scaled<T>(m[o][k], w[4 * o + k], v[k]);
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < Out; ++o) {
    columns[o][0] = m[o][0] + (m[o][1] + m[o][2]);
    columns[o][1] = m[o][3] + (m[o][1] - m[o][2]);
  }
  return w;
}

// A vector of squares of a block of output channels, activated, to `target`.
template <class T, int Out, class Source, class Target>
BUNIT_INLINE const T* wide_squares(const Source& in, int c_in, const T* w, const T* bias,
                                   Activation activation, const Target& target, int64_t vector) {
  SquareSums<T, Out> sums;
  Vec<T> upper[Out][2], next[Out][2];
  w = add_wide_row<T, 1>(in, c_in, w, bias, upper);
  w = add_wide_row<T, 2>(in, c_in, w, bias, next);
#pragma GCC unroll 8
  for (int i = 0; i < 2 * Out; ++i) {
    Vec<T>& lower = sums.y[i / 2][1][i % 2];
    lower = upper[i / 2][i % 2] - next[i / 2][i % 2];
    upper[i / 2][i % 2] += next[i / 2][i % 2];
    asm("" : "+m"(lower));  // in memory meanwhile: registers are for products
  }
  w = add_wide_row<T, 0>(in, c_in, w, bias, next);
#pragma GCC unroll 8
  for (int i = 0; i < 2 * Out; ++i) upper[i / 2][i % 2] += next[i / 2][i % 2];
  w = add_wide_row<T, 3>(in, c_in, w, bias, next);
#pragma GCC unroll 8
  for (int i = 0; i < 2 * Out; ++i) {
    sums.y[i / 2][0][i % 2] = upper[i / 2][i % 2];
    sums.y[i / 2][1][i % 2] += next[i / 2][i % 2];
  }
  sums.put(activation, target, vector);
  return w;
}

// `vectors` vectors of squares of all output channels.
template <class T, class Source, class Target>
void run_wide_squares(const Source& source, int c_in, const T* weights, const T* bias, int channels,
                      Activation activation, const Target& target, int64_t vectors, Soon* soon) {
  Source in = source;
  for (int64_t i = 0; i < vectors; ++i, in.skip_vector()) {
    in.feed();
    const T *w = weights, *own = bias ? bias : kZeros<T>;
    Target to = target;
    int c = 0;
    for (; c + kBlock <= channels; c += kBlock) {
      if (soon) soon->ask();
      w = wide_squares<T, kBlock>(in, c_in, w, own, activation, to, i);
      to.out += kBlock * to.plane_size();
      if (bias) own += kBlock;
    }
    if (c < channels && soon) soon->ask();
    switch (channels - c) {
      case 1:
        wide_squares<T, 1>(in, c_in, w, own, activation, to, i);
        break;
      case 2:
        wide_squares<T, 2>(in, c_in, w, own, activation, to, i);
        break;
      case 3:
        wide_squares<T, 3>(in, c_in, w, own, activation, to, i);
        break;
    }
  }
}

// How many strips conv_squares takes for rows of so many squares.
template <class T>
BUNIT_INLINE int64_t strips_of_squares(int channels, int64_t rows, int64_t squares) {
  const int64_t vectors = ((rows + 1) / 2 * squares + kLanes<T> - 1) / kLanes<T>;
  return (channels + kBlock - 1) / kBlock * vectors;
}

// Activated sums, plus bias[c] where there is one, of any number of channels. Of planes that `fed`
// fills they are filled on the way.
template <class T, class Target>
void conv_squares(const FromPlanes<T>& source, const FedPlanes<T>* fed, int c_in, const T* weights,
                  const T* bias, int channels, Activation activation, Target target,
                  int64_t vectors, Soon* soon) {
  if (c_in > kSquareInputs) {
    const auto run = [&](const auto& from) {
      run_wide_squares(from, c_in, weights, bias, channels, activation, target, vectors, soon);
    };
    return fed ? run(*fed) : run(source);
  }
  for (int c = 0; c < channels; c += kBlock) {
    const int block = channels - c < kBlock ? channels - c : kBlock;
    const T* own = bias ? bias + c : nullptr;
    if (fed && c == 0) {
      run_squares(*fed, c_in, weights, own, block, activation, target, vectors, soon);
    } else {
      run_squares(source, c_in, weights, own, block, activation, target, vectors, soon);
    }
    weights += 16 * c_in * block;
    target.out += block * target.plane_size();
  }
}

}  // namespace bunit::BUNIT_ISA
