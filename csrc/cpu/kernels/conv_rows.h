// 3x3 convolutions of stride 1 on rows of a vector or more: a few rows one above the other, so that
// each load is used for the three rows it serves. With AVX-512 rows are also read where an image
// has them, without padding, and made in pairs with fewer products.
#pragma once

#include "conv_flat.h"
#include "planes.h"

namespace bunit::BUNIT_ISA {

// Rows of one output vector each that conv_rows makes at a time, beside three weights a channel.
constexpr int rows_of_strip(int channels) {
  return BUNIT_REGISTERS == 32 ? (channels == 1   ? 8
                                  : channels == 2 ? 8
                                  : channels == 3 ? 6
                                                  : 4)
                               : (channels == 1   ? 10
                                  : channels == 2 ? 4
                                                  : 0);
}

// How many strips conv_rows takes for a block of output channels.
template <class T>
BUNIT_INLINE int64_t strips_of(int channels, int64_t rows, int64_t width) {
  const int limit = rows_of_strip(channels < kBlock ? channels : kBlock);
  return (rows + limit - 1) / limit * ((width + kLanes<T> - 1) / kLanes<T>);
}

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

// Memory that will be read soon, asked for a few lines at a time between strips of arithmetic: then
// it comes while they run.
struct Soon {
  const char* at = nullptr;
  int64_t lines = 0;  // left to ask for
  int64_t per_strip = 0;

  // What lies `image.ahead` from `channels` channels, the first at element `offset`, if these are
  // one piece of memory: during `strips` strips.
  template <class T>
  static Soon of(const Image& image, int64_t offset, int channels, int64_t strips) {
    const bool whole = image.stride_h == image.w * image.stride_w &&
                       image.stride_c == image.h * image.stride_h && has_plain_rows<T>(image);
    if (!whole || image.ahead == 0) return {};
    const char* at = static_cast<const char*>(image.data) + offset * int64_t(sizeof(T));
    const int64_t lines = channels * image.stride_c * int64_t(sizeof(T)) / 64;
    return {at + image.ahead, lines, lines / (strips > 0 ? strips : 1) + 1};
  }

  BUNIT_INLINE void ask() {
    const int64_t count = lines < per_strip ? lines : per_strip;
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
    at += 64 * count;
    lines -= count;
  }
};

// A pointer whose next value the compiler does not work out beforehand: one a row takes more
// registers than there are.
template <class T>
BUNIT_INLINE T* stepped(T* p, int64_t step) {
  p += step;
  asm("" : "+r"(p));
  return p;
}

// What rows above and below an image are read as.
template <class T>
constexpr T kZeros[kLanes<T> + 2] = {};

// Calls add(kx, read) for the kernel's columns, read(p) being the vector there of the one at column
// `x`, with which the row may end. Loads of some lanes take the arithmetic units' time, so the
// others are whole.
template <class T, bool Padded, class F>
BUNIT_INLINE void for_each_column(int64_t x, bool ends, F add) {
  const auto whole = [](const T* at) BUNIT_ALWAYS { return load(at); };
  if (Padded || x > 0) {
    add(0, whole);
  } else {
    add(0, [](const T* at) BUNIT_ALWAYS { return load_lanes(at, kAllButFirst<T>); });
  }
  add(1, whole);
  if (Padded || !ends) {
    add(2, whole);
  } else {
    add(2, [](const T* at) BUNIT_ALWAYS { return load_lanes(at, kAllButLast<T>); });
  }
}

// Sums of products of `Rows` rows, one output vector of each, of `Channels` output channels.
template <class T, int Channels, int Rows, bool Padded>
struct TapSums {
  static constexpr int kTaps = 9;  // weights [c_in][3][3][Channels]

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
      for_each_column<T, Padded>(x, ends, [&](int kx, auto read) BUNIT_ALWAYS {
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
      });
      in += rows.plane;
      first += first_plane;
      last += last_plane;
    }
  }
};

// The same of rows in pairs: Winograd's minimal filtering of columns, F(2, 3), for which 4 products
// take the place of 6.
template <class T, int Channels, int Rows, bool Padded>
struct PairSums {
  static constexpr int kTaps = 12;  // weights [c_in][kx][4][Channels]

  static BUNIT_INLINE void add(const StripRows<T>& rows, int c_in, const T* weights, const T* bias,
                               int64_t x, bool ends, Vec<T> (&out)[Channels][Rows]) {
    constexpr int kPairs = Rows / 2;
    Vec<T> acc[kPairs][4][Channels];
#pragma GCC unroll 16
    for (int i = 0; i < kPairs; ++i) {
#pragma GCC unroll 16
      for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) {
          acc[i][k][c] = k == 1 && bias ? splat<T>(bias[c]) : Vec<T>{};  // is in both rows once
        }
      }
    }
    const T* in = rows.in + x;
    const bool top = !Padded && rows.top, bottom = !Padded && rows.bottom;
    const bool no_below = rows.half && bottom, no_last = rows.half || bottom;
    const T* first = top ? kZeros<T> : in;
    const T* below = no_below ? kZeros<T> : in + Rows * rows.row;
    const T* last = no_last ? kZeros<T> : in + (Rows + 1) * rows.row;
    const int64_t first_plane = top ? 0 : rows.plane, below_plane = no_below ? 0 : rows.plane;
    const int64_t last_plane = no_last ? 0 : rows.plane;
    for (int p = 0; p < c_in; ++p, weights += 12 * Channels) {
      for_each_column<T, Padded>(x, ends, [&](int kx, auto read) BUNIT_ALWAYS {
        const T* w = weights + kx * 4 * Channels;
        Vec<T> v[Rows + 2];
#pragma GCC unroll 16
        for (int i = 0; i < Rows + 2; ++i) {
          const T* at = i == 0 ? first : i < Rows ? in + i * rows.row : i == Rows ? below : last;
          v[i] = read(at + kx);
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
            if constexpr (kPairs == 1) {
              add_scaled<T>(acc[0][k][c], w[k * Channels + c], turned[0]);
            } else {
              const Vec<T> weight = splat<T>(w[k * Channels + c]);
#pragma GCC unroll 16
              for (int i = 0; i < kPairs; ++i) add_product<T>(acc[i][k][c], weight, turned[i]);
            }
          }
        }
      });
      in += rows.plane;
      first += first_plane;
      below += below_plane;
      last += last_plane;
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

// `count` times `Rows` rows of `width` pixels of `Channels` output channels of a 3x3 convolution,
// stride 1, a vector at a time; how the products are made is `Sums`' matter.
template <template <class, int, int, bool> class Sums, class T, int Channels, int Rows, bool Padded>
struct RowStrip {
  static void run(const StripRows<T>& all, int c_in, const T* weights, const T* bias,
                  Activation activation, bool around, T* out, int64_t out_plane, int64_t out_row,
                  int64_t width, int64_t count, Soon* soon) {
    StripRows<T> rows = all;
    for (int64_t strip = 0; strip < count; ++strip) {
      rows.top = all.top && strip == 0;
      rows.bottom = all.bottom && strip + 1 == count;
      for (int64_t next = 0; next < width; next += kLanes<T>) {
        // The last vector of a row begins where it ends with the row.
        const int64_t x = next + kLanes<T> <= width ? next : width - kLanes<T>;
        if (soon) soon->ask();
        Vec<T> acc[Channels][Rows];
        Sums<T, Channels, Rows, Padded>::add(rows, c_in, weights, bias, x, x + kLanes<T> == width,
                                             acc);
        if (activation == Activation::relu) {
#pragma GCC unroll 16
          for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
            for (int i = 0; i < Rows; ++i) acc[c][i] = max0<T>(acc[c][i]);
          }
        }
        if (around) {
          finish(acc, rows.half, out + x, out_plane, out_row,
                 [](T* p, Vec<T> v) BUNIT_ALWAYS { store_around(p, v); });
        } else {
          finish(acc, rows.half, out + x, out_plane, out_row,
                 [](T* p, Vec<T> v) BUNIT_ALWAYS { store(p, v); });
        }
        switch (activation) {
          case Activation::identity:
          case Activation::relu:
            break;
          default:
            for (int c = 0; c < Channels; ++c) {
              for (int i = 0; i < Rows - rows.half; ++i) {
                activate_in_place(activation, out + x + c * out_plane + i * out_row, kLanes<T>);
              }
            }
        }
      }
      rows.in += Rows * rows.row;
      out += Rows * out_row;
    }
  }

  template <class F>
  static BUNIT_INLINE void finish(const Vec<T> (&acc)[Channels][Rows], bool half, T* out,
                                  int64_t out_plane, int64_t out_row, F put) {
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
      T* row = out;
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        if (Rows % 2 == 1 || i + 1 < Rows || !half) put(row, acc[c][i]);
        row = stepped(row, out_row);
      }
      out = stepped(out, out_plane);
    }
  }
};

template <class T>
using RowStripFn = void (*)(const StripRows<T>&, int, const T*, const T*, Activation, bool, T*,
                            int64_t, int64_t, int64_t, int64_t, Soon*);

template <class T, bool Padded, int Channels, class S>
struct RowStrips {
  static constexpr RowStripFn<T> table[] = {nullptr};
};
template <class T, bool Padded, int Channels, int First, int... I>
struct RowStrips<T, Padded, Channels, Seq<First, I...>> {
  static constexpr RowStripFn<T> table[] = {&RowStrip<TapSums, T, Channels, First + 1, Padded>::run,
                                            &RowStrip<TapSums, T, Channels, I + 1, Padded>::run...};
};

template <class T, bool Padded>
BUNIT_INLINE RowStripFn<T> row_strip(int channels, int rows) {
  switch (channels) {
    case 1:
      return RowStrips<T, Padded, 1, typename MakeSeq<rows_of_strip(1)>::type>::table[rows - 1];
    case 2:
      return RowStrips<T, Padded, 2, typename MakeSeq<rows_of_strip(2)>::type>::table[rows - 1];
    case 3:
      return RowStrips<T, Padded, 3, typename MakeSeq<rows_of_strip(3)>::type>::table[rows - 1];
    default:
      return RowStrips<T, Padded, 4, typename MakeSeq<rows_of_strip(4)>::type>::table[rows - 1];
  }
}

// Pairs that conv_rows makes at a time.
constexpr int pairs_of_strip(int channels) { return channels < kBlock ? 2 : 1; }

template <class T, bool Padded>
BUNIT_INLINE RowStripFn<T> pair_strip(int channels, int pairs) {
  if constexpr (kLeastPaired <= kBlock) {
    switch (channels) {
      case 2:
        return pairs == 1 ? &RowStrip<PairSums, T, 2, 2, Padded>::run
                          : &RowStrip<PairSums, T, 2, 4, Padded>::run;
      case 3:
        return pairs == 1 ? &RowStrip<PairSums, T, 3, 2, Padded>::run
                          : &RowStrip<PairSums, T, 3, 4, Padded>::run;
      default:
        return &RowStrip<PairSums, T, 4, 2, Padded>::run;
    }
  }
  return nullptr;
}

// Whether rows fill their vectors well enough to be taken one by one.
template <class T>
BUNIT_INLINE bool fills_rows(int64_t width) {
  const int64_t vectors = (width + kLanes<T> - 1) / kLanes<T>;
  return width >= kLanes<T> && width * 20 >= vectors * kLanes<T> * 17;
}

// Whether conv_rows serves: 3x3, stride and dilation 1 (told by `plain`), such rows, and registers
// for as many channels.
template <class T>
bool takes_rows(bool plain, int channels, int64_t width) {
  return plain && rows_of_strip(channels < kBlock ? channels : kBlock) > 0 && fills_rows<T>(width);
}

// out[c][y][x] = activation(bias[c] + sum over c_in, ky, kx) for `rows` rows of `width` pixels;
// only pixels are written. With `pairs` blocks of kLeastPaired channels and more are made in pairs
// of rows, from the first on: the same rows must always be pairs for results to be the same bits.
template <class T>
void conv_rows(const StripRows<T>& in, int c_in, const T* weights, const T* bias, int channels,
               bool pairs, Activation activation, bool around, T* out, int64_t out_plane,
               int64_t out_row, int64_t rows, int64_t width, Soon* soon) {
  for (int c = 0, block; c < channels; c += block) {
    block = channels - c < kBlock ? channels - c : kBlock;
    const bool paired = pairs && block >= kLeastPaired;
    // `count` strips from row y on, of `height` rows, the last of them maybe not made.
    const auto run = [&](int64_t y, int height, bool half, int64_t count) {
      if (count == 0) return;
      StripRows<T> strip = in;
      strip.in += y * in.row;
      strip.top = in.top && y == 0;
      strip.bottom = in.bottom && y + height * count - half == rows;
      strip.half = half;
      const RowStripFn<T> function =
          paired ? (in.padded ? pair_strip<T, true>(block, height / 2)
                              : pair_strip<T, !kLoadsLanes>(block, height / 2))
                 : (in.padded ? row_strip<T, true>(block, height)
                              : row_strip<T, !kLoadsLanes>(block, height));
      function(strip, c_in, weights, bias, activation, around, out + y * out_row, out_plane,
               out_row, width, count, soon);
    };
    if (paired) {
      const int height = 2 * pairs_of_strip(block);
      const int64_t whole = rows / height * height;
      run(0, height, false, rows / height);
      const int rest = int(rows - whole);
      if (rest) run(whole, (rest + 1) / 2 * 2, rest % 2 == 1, 1);
    } else {
      const int64_t count = strips_of<T>(block, rows, kLanes<T>);
      const int64_t higher = rows % count;  // by one
      const int height = int(rows / count);
      run(0, height, false, count - higher);
      run((count - higher) * height, height + 1, false, higher);
    }
    weights += int64_t(c_in) * block * (paired ? 12 : 9);
    bias = bias ? bias + block : nullptr;
    out += block * out_plane;
  }
}

}  // namespace bunit::BUNIT_ISA
