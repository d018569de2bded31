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

// Fills rows [q0, q1) of the planes of `channels` channels; `base` is the row the planes begin at.
// `spare` has room for a row and a vector; `norm` is applied to pixels, not to padding.
template <class T>
void load_planes(const Image& image, int64_t n, int64_t channel, int channels, const PlaneMap& map,
                 int64_t base, int64_t q0, int64_t q1, T* planes, const Norm& norm,
                 Activation activation, T* spare) {
  const bool dense = map.stride == 1 && map.pad == 0 && map.row == image.w &&
                     image.stride_h == image.w * image.stride_w;
  for (int c = 0; c < channels; ++c) {
    for (int py = 0; py < map.phases; ++py) {
      for (int px = 0; px < map.phases; ++px) {
        T* plane = planes + ((c * map.phases + py) * map.phases + px) * map.plane;
        if (dense && !norm.mean) {  // the rows lie end to end on both sides
          const int64_t rows = at_most(q1, image.h) - q0;
          T* target = plane + (q0 - base) * map.row;
          read_row(image, offset_of(image, n, channel + c, q0, 0), image.stride_w, target,
                   at_least(rows, 0) * image.w);
          clear(target + at_least(rows, 0) * image.w, (q1 - q0 - at_least(rows, 0)) * image.w);
          continue;
        }
        const int64_t first = at_least(ceil_div(map.pad - px, map.stride), 0);
        const int64_t last = at_most(ceil_div(image.w + map.pad - px, map.stride), map.row);
        for (int64_t q = q0; q < q1; ++q) {
          T* row = plane + (q - base) * map.row;
          const int64_t y = q * map.stride + py - map.pad;
          if (y < 0 || y >= image.h || last <= first) {
            clear(row, map.row);
            continue;
          }
          const int64_t x = first * map.stride + px - map.pad;
          const int64_t offset = offset_of(image, n, channel + c, y, x);
          const int64_t step = map.stride * image.stride_w;
          clear(row, first);
          if (norm.mean) {
            read_row(image, offset, step, spare, last - first);
            normalise_row(norm, channel + c, activation, spare, last - first);
            memcpy(row + first, spare, size_t(last - first) * sizeof(T));
          } else {
            read_row(image, offset, step, row + first, last - first);
          }
          clear(row + last, map.row - last);
        }
        clear(plane + (q1 - base) * map.row, map.pad);  // right padding of the last row
      }
    }
  }
}

// Writes `rows` finished rows of `channels` channels to rows y0... of `image`.
template <class T>
void store_planes(const Image& image, int64_t n, int64_t channel, int channels, int64_t y0,
                  int64_t rows, const T* planes, int64_t plane, int64_t row) {
  const bool dense = row == image.w && image.stride_h == image.w * image.stride_w;
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
