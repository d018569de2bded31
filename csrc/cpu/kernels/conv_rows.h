// 3x3 convolutions of stride 1 on rows of a vector or more: a few rows one above the other, so that
// each load is used for the three rows it serves. With AVX-512 rows are also read where an image
// has them, without padding.
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

// `Rows` rows of `width` pixels of `Channels` output channels of a 3x3 convolution, stride 1, a
// vector at a time.
template <class T, int Channels, int Rows, bool Padded>
struct RowStrip {
  static void run(const StripRows<T>& rows, int c_in, const T* weights, const T* bias,
                  Activation activation, bool around, T* out, int64_t out_plane, int64_t out_row,
                  int64_t width, Soon* soon) {
    for (int64_t next = 0; next < width; next += kLanes<T>) {
      // The last vector of a row begins where it ends with the row.
      const int64_t x = next + kLanes<T> <= width ? next : width - kLanes<T>;
      if (soon) soon->ask();
      Vec<T> acc[Channels][Rows];
      sums(rows, c_in, weights, bias, x, x + kLanes<T> == width, acc);
      if (activation == Activation::relu) {
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
          for (int i = 0; i < Rows; ++i) acc[c][i] = max0<T>(acc[c][i]);
        }
      }
      if (around) {
        finish(acc, out + x, out_plane, out_row, [](T* p, Vec<T> v) { store_around(p, v); });
      } else {
        finish(acc, out + x, out_plane, out_row, [](T* p, Vec<T> v) { store(p, v); });
      }
      switch (activation) {
        case Activation::identity:
        case Activation::relu:
          break;
        default:
          for (int c = 0; c < Channels; ++c) {
            for (int i = 0; i < Rows; ++i) {
              activate_in_place(activation, out + x + c * out_plane + i * out_row, kLanes<T>);
            }
          }
      }
    }
  }

  static BUNIT_INLINE void sums(const StripRows<T>& rows, int c_in, const T* weights, const T* bias,
                                int64_t x, bool ends, Vec<T> (&acc)[Channels][Rows]) {
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) acc[c][i] = bias ? splat<T>(bias[c]) : Vec<T>{};
    }
    static const T zeros[kLanes<T> + 2] = {};
    const T* in = rows.in + x;
    const T* first = rows.top ? zeros : in;
    const T* last = rows.bottom ? zeros : in + (Rows + 1) * rows.row;
    const int64_t first_plane = rows.top ? 0 : rows.plane;
    const int64_t last_plane = rows.bottom ? 0 : rows.plane;
    for (int p = 0; p < c_in; ++p, weights += 9 * Channels) {
      const auto add_column = [&](int kx, auto read) BUNIT_ALWAYS {
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
      // Loads of some lanes take the arithmetic units' time.
      const auto whole = [](const T* at) BUNIT_ALWAYS { return load(at); };
      if (Padded || x > 0) {
        add_column(0, whole);
      } else {
        add_column(0, [](const T* at) BUNIT_ALWAYS { return load_lanes(at, kAllButFirst<T>); });
      }
      add_column(1, whole);
      if (Padded || !ends) {
        add_column(2, whole);
      } else {
        add_column(2, [](const T* at) BUNIT_ALWAYS { return load_lanes(at, kAllButLast<T>); });
      }
      in += rows.plane;
      first += first_plane;
      last += last_plane;
    }
  }

  template <class F>
  static BUNIT_INLINE void finish(const Vec<T> (&acc)[Channels][Rows], T* out, int64_t out_plane,
                                  int64_t out_row, F put) {
#pragma GCC unroll 16
    for (int c = 0; c < Channels; ++c) {
      T* row = out;
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        put(row, acc[c][i]);
        row = stepped(row, out_row);
      }
      out = stepped(out, out_plane);
    }
  }
};

template <class T>
using RowStripFn = void (*)(const StripRows<T>&, int, const T*, const T*, Activation, bool, T*,
                            int64_t, int64_t, int64_t, Soon*);

template <class T, bool Padded, int Channels, class S>
struct RowStrips {
  static constexpr RowStripFn<T> table[] = {nullptr};
};
template <class T, bool Padded, int Channels, int First, int... I>
struct RowStrips<T, Padded, Channels, Seq<First, I...>> {
  static constexpr RowStripFn<T> table[] = {&RowStrip<T, Channels, First + 1, Padded>::run,
                                            &RowStrip<T, Channels, I + 1, Padded>::run...};
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
// only pixels are written.
template <class T>
void conv_rows(const StripRows<T>& in, int c_in, const T* weights, const T* bias, int channels,
               Activation activation, bool around, T* out, int64_t out_plane, int64_t out_row,
               int64_t rows, int64_t width, Soon* soon) {
  const int limit = rows_of_strip(channels < kBlock ? channels : kBlock), rest = channels % kBlock;
  const int64_t strips = (rows + limit - 1) / limit;
  int64_t y = 0;
  for (int64_t s = 0; s < strips; ++s) {
    const int strip = int((rows - y) / (strips - s));
    const auto of = [&](int block) {
      return in.padded ? row_strip<T, true>(block, strip)
                       : row_strip<T, !kLoadsLanes>(block, strip);
    };
    StripRows<T> strip_rows = in;
    strip_rows.in += y * in.row;
    strip_rows.top = in.top && y == 0;
    strip_rows.bottom = in.bottom && y + strip == rows;
    T* to = out + y * out_row;
    const T *w = weights, *b = bias;
    const RowStripFn<T> run = channels < kBlock ? nullptr : of(kBlock);
    for (int c = kBlock; c <= channels; c += kBlock, to += kBlock * out_plane) {
      run(strip_rows, c_in, w, b, activation, around, to, out_plane, out_row, width, soon);
      w += int64_t(kBlock) * 9 * c_in;
      b = b ? b + kBlock : nullptr;
    }
    if (rest) {
      of(rest)(strip_rows, c_in, w, b, activation, around, to, out_plane, out_row, width, soon);
    }
    y += strip;
  }
}

}  // namespace bunit::BUNIT_ISA
