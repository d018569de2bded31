// Image rows into padded planes, and finished planes into image rows.
#pragma once

#include "convert.h"

namespace bunit::BUNIT_ISA {

BUNIT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }
BUNIT_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
BUNIT_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// Few elements, mostly one: a call of memset would take longer, hence volatile.
template <class T>
BUNIT_INLINE void clear(T* data, int64_t n) {
  if (n > 2 * kLanes<T>) {
    memset(data, 0, size_t(n) * sizeof(T));
    return;
  }
  volatile T* p = data;
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

BUNIT_INLINE int64_t offset_of(const Image& image, int64_t n, int64_t c, int64_t y, int64_t x) {
  return n * image.stride_n + c * image.stride_c + y * image.stride_h + x * image.stride_w;
}

// Normalises and activates `n` values of one channel, whole vectors at a time: `row` must have room
// for a vector more.
template <class T>
BUNIT_INLINE void normalise_row(const Norm& norm, int64_t channel, Activation activation, T* row,
                                int64_t n) {
  const Vec<T> mean = splat(static_cast<const T*>(norm.mean)[channel]);
  const Vec<T> scale = splat(static_cast<const T*>(norm.scale)[channel]);
  const Vec<T> shift = splat(static_cast<const T*>(norm.shift)[channel]);
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    store(row + i, activate<T>(activation, (load(row + i) - mean) * scale + shift));
  }
}

// How an image's rows lie in a buffer of planes: channel c, phase (py, px) is plane
// (c * phases + py) * phases + px, whose row q holds image row q * stride + py - pad and whose
// column j holds image column j * stride + px - pad; what lies outside the image is zero.
struct PlaneMap {
  int64_t row, plane;
  int64_t stride, pad;
  int phases;
};

// Readers give `count` pixels of a channel's row, from column x on and `step` apart.
struct ReadPixels {
  static constexpr bool kPlain = true;
  const Image& image;
  int64_t n;

  template <class T>
  BUNIT_INLINE void operator()(int64_t channel, int64_t y, int64_t x, int64_t step, T* target,
                               int64_t count) const {
    read_row(image, offset_of(image, n, channel, y, x), step * image.stride_w, target, count);
  }
};

// Pixels normalised and activated; padding stays zero.
template <class T>
struct ReadNormalised {
  static constexpr bool kPlain = false;
  const Image& image;
  int64_t n;
  const Norm& norm;
  Activation activation;
  T* spare;  // a row and a vector

  BUNIT_INLINE void operator()(int64_t channel, int64_t y, int64_t x, int64_t step, T* target,
                               int64_t count) const {
    read_row(image, offset_of(image, n, channel, y, x), step * image.stride_w, spare, count);
    normalise_row(norm, channel, activation, spare, count);
    copy_row(spare, target, count);
  }
};

// Fills rows [q0, q1) of the planes of `channels` channels; `base` is the row the planes begin at.
template <class T, class Reader>
void load_planes(const Reader& read, int64_t height, int64_t width, bool dense, int64_t channel,
                 int channels, const PlaneMap& map, int64_t base, int64_t q0, int64_t q1,
                 T* planes) {
  for (int c = 0; c < channels; ++c) {
    for (int py = 0; py < map.phases; ++py) {
      for (int px = 0; px < map.phases; ++px) {
        T* plane = planes + ((c * map.phases + py) * map.phases + px) * map.plane;
        if (Reader::kPlain && dense && map.stride == 1 && map.pad == 0 && map.row == width) {
          // The rows lie end to end on both sides.
          const int64_t rows = at_least(at_most(q1, height) - q0, 0);
          T* target = plane + (q0 - base) * map.row;
          read(channel + c, q0, 0, 1, target, rows * width);
          clear(target + rows * width, (q1 - q0 - rows) * width);
          continue;
        }
        const int64_t first = at_least(ceil_div(map.pad - px, map.stride), 0);
        const int64_t last = at_most(ceil_div(width + map.pad - px, map.stride), map.row);
        for (int64_t q = q0; q < q1; ++q) {
          T* row = plane + (q - base) * map.row;
          const int64_t y = q * map.stride + py - map.pad;
          if (y < 0 || y >= height || last <= first) {
            clear(row, map.row);
            continue;
          }
          clear(row, first);
          read(channel + c, y, first * map.stride + px - map.pad, map.stride, row + first,
               last - first);
          clear(row + last, map.row - last);
        }
        clear(plane + (q1 - base) * map.row, map.pad);  // right padding of the last row
      }
    }
  }
}

BUNIT_INLINE bool has_dense_rows(const Image& image) {
  return image.stride_h == image.w * image.stride_w;
}

// Writes `rows` finished rows of `channels` channels to rows y0... of `image`.
template <class T>
void store_planes(const Image& image, int64_t n, int64_t channel, int channels, int64_t y0,
                  int64_t rows, const T* planes, int64_t plane, int64_t row) {
  const bool dense = row == image.w && has_dense_rows(image);
  for (int c = 0; c < channels; ++c) {
    const T* source = planes + c * plane;
    const int64_t offset = offset_of(image, n, channel + c, y0, 0);
    if (dense) {
      write_row(image, offset, image.stride_w, source, rows * image.w);
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      write_row(image, offset + r * image.stride_h, image.stride_w, source + r * row, image.w);
    }
  }
}

}  // namespace bunit::BUNIT_ISA
