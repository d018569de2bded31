// Products of matrices of wide units in tiles of registers: vectors of channels beside rows, a
// value of a row broadcast to all of them.
#pragma once

#include "planes.h"

namespace bunit::BUNIT_ISA {

// Vectors of channels that a tile spans at most, and rows of it that they leave registers for.
constexpr int kTileVectors = 4;
constexpr int tile_rows(int vectors) {
  constexpr int kSums = BUNIT_REGISTERS == 32 ? 24 : 12;
  return vectors == 1 ? kSums * 2 / 3 : kSums / vectors;
}
// Rows of the next smaller tile: a power of two.
constexpr int fewer_rows(int rows) {
  int fewer = 1;
  while (2 * fewer < rows) fewer *= 2;
  return fewer;
}

template <class T>
BUNIT_INLINE int64_t whole_vectors(int64_t channels) {
  return (channels + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// acc[m][v] += sum over t of a[m * a_row + t * a_step] * b[t * b_step + vector v].
template <int Rows, int Vectors, class T>
BUNIT_INLINE void add_products(const T* a, int64_t a_row, int64_t a_step, const T* b,
                               int64_t b_step, int64_t taps, Vec<T> (&acc)[Rows][Vectors]) {
  for (int64_t t = 0; t < taps; ++t, a += a_step, b += b_step) {
    add_outer([&](int m) BUNIT_ALWAYS { return splat<T>(a[m * a_row]); },
              [&](int v) BUNIT_ALWAYS { return load(b + v * kLanes<T>); }, acc);
  }
}

// to[i] += element i of `vectors`, for `count` of them or as many as there are.
template <class T, int Vectors>
BUNIT_INLINE void add_vectors(const Vec<T> (&vectors)[Vectors], int64_t count, T* to) {
#pragma GCC unroll 16
  for (int v = 0; v < Vectors; ++v, to += kLanes<T>, count -= kLanes<T>) {
    if (count >= kLanes<T>) {
      store(to, load(to) + vectors[v]);
      continue;
    }
    T lanes[kLanes<T>];
    store(lanes, vectors[v]);
    for (int64_t i = 0; i < count; ++i) to[i] += lanes[i];
  }
}

// Calls tile<rows, vectors>(first row, first channel) until all rows of all channels are covered.
template <int Rows, int Vectors, class F>
BUNIT_INLINE void tile_column(int64_t row, int64_t rows, int64_t channel, F tile) {
  for (; row + Rows <= rows; row += Rows) tile.template operator()<Rows, Vectors>(row, channel);
  if constexpr (Rows > 1) tile_column<fewer_rows(Rows), Vectors>(row, rows, channel, tile);
}
template <class T, class F>
BUNIT_INLINE void for_each_tile(int64_t rows, int64_t channels, F tile) {
  for (int64_t c = 0; c < channels; c += kTileVectors * kLanes<T>) {
    switch (at_most((channels - c + kLanes<T> - 1) / kLanes<T>, kTileVectors)) {
      case 1:
        tile_column<tile_rows(1), 1>(0, rows, c, tile);
        break;
      case 2:
        tile_column<tile_rows(2), 2>(0, rows, c, tile);
        break;
      case 3:
        tile_column<tile_rows(3), 3>(0, rows, c, tile);
        break;
      default:
        tile_column<tile_rows(4), 4>(0, rows, c, tile);
    }
  }
}

}  // namespace bunit::BUNIT_ISA
