// What a strip of rows of a 3x3 convolution of stride 1 adds up: a vector of a few rows one above
// the other, so that each load is used for the three rows it serves; tap by tap, or, with AVX-512,
// in pairs of rows with fewer products.
#pragma once

#include "conv_flat.h"

namespace bunit::BUNIT_ISA {

// The rows that strips read, `row` elements apart in each plane, from row and column -1 on. Planes
// hold their padding; of those that have none, what lies outside the image is not read but zero.
template <class T>
struct StripRows {
  const T* in;
  int64_t row, plane;
  bool padded = true;
  bool top = false, bottom = false;  // without padding: whether the image ends with the outputs
  bool half = false;                 // in pairs: whether the last row is not made
};

// What rows above and below an image are read as.
template <class T>
constexpr T kZeros[kLanes<T> + 2] = {};

// Calls add(kx, read) for a column of the kernel, read(p) being the vector there, of a row's vector
// at column `x`, with which the row may end. What lies beside an image comes of shifting what does
// not: loads of some lanes only take longer.
template <class T, class F>
BUNIT_INLINE void add_middle(F add) {
  add(1, [](const T* at) BUNIT_ALWAYS { return load(at); });
}
template <class T, bool Padded, class F>
BUNIT_INLINE void add_left(int64_t x, F add) {
  if (Padded || x > 0) {
    add(0, [](const T* at) BUNIT_ALWAYS { return load(at); });
  } else {
    add(0, [](const T* at) BUNIT_ALWAYS { return zero_before<T>(load(at + 1)); });
  }
}
template <class T, bool Padded, class F>
BUNIT_INLINE void add_right(bool ends, F add) {
  if (Padded || !ends) {
    add(2, [](const T* at) BUNIT_ALWAYS { return load(at); });
  } else {
    add(2, [](const T* at) BUNIT_ALWAYS { return zero_after<T>(load(at - 1)); });
  }
}

// Sums of products of `Rows` rows, one output vector of each, of `Channels` output channels;
// weights [c_in][3][3][Channels].
template <class T, int Channels, int Rows, bool Padded>
struct TapSums {
  static BUNIT_INLINE void add(const StripRows<T>& rows, int c_in, const T* weights, const T* bias,
                               int64_t x, bool ends, Vec<T> (&acc)[Channels][Rows]) {
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) acc[c][i] = bias ? splat<T>(bias[c]) : Vec<T>{};
    }
    const T* in = rows.in + x;
    const T* first = rows.top ? kZeros<T> : in;
    const T* last = rows.bottom ? kZeros<T> : in + (Rows + 1) * rows.row;
    const int64_t first_plane = rows.top ? 0 : rows.plane;
    const int64_t last_plane = rows.bottom ? 0 : rows.plane;
    for (int p = 0; p < c_in; ++p, weights += 9 * Channels) {
      const auto add = [&](int kx, auto read) BUNIT_ALWAYS {
        Vec<T> w[3][Channels];
#pragma GCC unroll 16
        for (int ky = 0; ky < 3; ++ky) {
#pragma GCC unroll 16
          for (int c = 0; c < Channels; ++c) {
            w[ky][c] = splat<T>(weights[(ky * 3 + kx) * Channels + c]);
          }
        }
#pragma GCC unroll 16
        for (int i = 0; i < Rows + 2; ++i) {
          const T* at = Padded || (i > 0 && i <= Rows) ? in + i * rows.row : i == 0 ? first : last;
          const Vec<T> v = read(at + kx);
#pragma GCC unroll 16
          for (int ky = 0; ky < 3; ++ky) {
            if (i - ky < 0 || i - ky >= Rows) continue;
#pragma GCC unroll 16
            for (int c = 0; c < Channels; ++c) add_product<T>(acc[c][i - ky], w[ky][c], v);
          }
        }
      };
      add_left<T, Padded>(x, add);
      add_middle<T>(add);
      add_right<T, Padded>(ends, add);
      in += rows.plane;
      first += first_plane;
      last += last_plane;
    }
  }
};

// The same of rows in pairs: Winograd's minimal filtering of columns, F(2, 3), for which 4 products
// take the place of 6; weights [c_in][kx][4][Channels].
template <class T, int Channels, int Rows, bool Padded>
struct PairSums {
  static BUNIT_INLINE void add(const StripRows<T>& rows, int c_in, const T* weights, const T* bias,
                               int64_t x, bool ends, Vec<T> (&out)[Channels][Rows]) {
    constexpr int kPairs = Rows / 2;
    Vec<T> acc[kPairs][4][Channels];
    const T* in = rows.in + x;
    const bool top = !Padded && rows.top, bottom = !Padded && rows.bottom;
    const bool no_below = rows.half && bottom, no_last = rows.half || bottom;
    const T* first = top ? kZeros<T> : in;
    const T* below = no_below ? kZeros<T> : in + Rows * rows.row;
    const T* last = no_last ? kZeros<T> : in + (Rows + 1) * rows.row;
    const int64_t first_plane = top ? 0 : rows.plane, below_plane = no_below ? 0 : rows.plane;
    const int64_t last_plane = no_last ? 0 : rows.plane;
    const auto add_column = [&](int kx, auto read, bool begins) BUNIT_ALWAYS {
      const T* w = weights + kx * 4 * Channels;
      Vec<T> v[Rows + 2];
#pragma GCC unroll 16
      for (int i = 0; i < Rows + 2; ++i) {
        const T* at = i == 0 ? first : i < Rows ? in + i * rows.row : i == Rows ? below : last;
        v[i] = read(at + kx);
        if (i > 0 && i <= Rows) asm("" : "+v"(v[i]));  // or it is read again for each use
      }
#pragma GCC unroll 16
      for (int k = 0; k < 4; ++k) {
        Vec<T> turned[kPairs];
#pragma GCC unroll 16
        for (int i = 0; i < kPairs; ++i) {
          const Vec<T>* r = v + 2 * i;
          turned[i] = k == 0   ? r[0] - r[2]
                      : k == 1 ? r[1] + r[2]
                      : k == 2 ? r[2] - r[1]
                               : r[1] - r[3];
        }
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) {
          const T& weight = w[k * Channels + c];
#pragma GCC unroll 16
          for (int i = 0; i < kPairs; ++i) {
            if (!begins) {
              add_scaled<T>(acc[i][k][c], weight, turned[i]);
            } else if (k == 1 && bias) {  // is in both rows once
              acc[i][k][c] = splat<T>(bias[c]);
              add_scaled<T>(acc[i][k][c], weight, turned[i]);
            } else {
              acc[i][k][c] = splat<T>(weight) * turned[i];
            }
          }
        }
      }
    };
    const auto add = [&](int kx, auto read) BUNIT_ALWAYS { add_column(kx, read, false); };
    // The first products are no additions to zero: as the strip before is stored now, and a Zen 4
    // does not do both at once (96 products 96 cycles, with 8 stores 107).
    add_middle<T>([&](int kx, auto read) BUNIT_ALWAYS { add_column(kx, read, true); });
    for (int p = 0;;) {
      add_left<T, Padded>(x, add);
      add_right<T, Padded>(ends, add);
      if (++p == c_in) break;
      in += rows.plane;
      first += first_plane;
      below += below_plane;
      last += last_plane;
      weights += 12 * Channels;
      add_middle<T>(add);
    }
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < kPairs; ++i) {
        const auto& m = acc[i];
        out[c][2 * i] = m[0][c] + (m[1][c] + m[2][c]);
        out[c][2 * i + 1] = (m[1][c] - m[2][c]) - m[3][c];
      }
    }
  }
};

}  // namespace bunit::BUNIT_ISA
