// 3x3 convolutions of stride 1 on rows of a vector or more, in strips of rows (row_sums.h). With
// AVX-512 rows are also read where an image has them, without padding.
#pragma once

#include "planes.h"
#include "row_sums.h"

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
    const int64_t lines = channels * image.stride_c * int64_t(sizeof(T)) / kLineBytes;
    return {at + image.ahead, lines, lines / (strips > 0 ? strips : 1) + 1};
  }

  BUNIT_INLINE void ask() {
    const int64_t count = lines < per_strip ? lines : per_strip;
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(at + kLineBytes * i, 0, 3);
    at += kLineBytes * count;
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
