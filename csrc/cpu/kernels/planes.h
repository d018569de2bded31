// Image rows into padded planes, and finished planes into image rows.
#pragma once

#include "rows.h"

namespace bunit::BUNIT_ISA {

BUNIT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }
BUNIT_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
BUNIT_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// From `p` on: where element `index` is aligned to a vector, behind a vector and before another.
template <class T>
BUNIT_INLINE T* with_aligned(T* p, int64_t index) {
  constexpr uintptr_t kAlign = sizeof(Vec<T>);
  const uintptr_t behind = reinterpret_cast<uintptr_t>(p + kLanes<T> + index) % kAlign;
  return p + kLanes<T> + (kAlign - behind) % kAlign / sizeof(T);
}

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

// Clears `n` elements from `data` on and from every `step` elements further, `count` times.
template <class T>
BUNIT_INLINE void clear_each(T* data, int64_t count, int64_t step, int64_t n) {
  if (n == 1) {  // the gap between two rows that share their padding
    for (int64_t i = 0; i < count; ++i) data[i * step] = 0;
    return;
  }
  for (int64_t i = 0; i < count; ++i) clear(data + i * step, n);
}

BUNIT_INLINE int64_t offset_of(const Image& image, int64_t n, int64_t c, int64_t y, int64_t x) {
  return n * image.stride_n + c * image.stride_c + y * image.stride_h + x * image.stride_w;
}

// Where an image has a unit's output channel c, and from one of them to the next; 0 where that
// differs.
BUNIT_INLINE int64_t place_of(const Image& image, const OutChannels& out, int64_t c) {
  return image.shuffled ? out.places[c] : out.first + c;
}
BUNIT_INLINE int64_t step_of(const Image& image, const OutChannels& out) {
  return image.shuffled ? out.step : 1;
}

BUNIT_INLINE int64_t element_size(Scalar dtype) {
  return dtype == Scalar::float64 ? 8 : dtype == Scalar::float32 ? 4 : 2;
}

// Asks for what lies `image.ahead` from `bytes` to be read.
BUNIT_INLINE void prefetch(const Image& image, const void* data, int64_t bytes) {
  if (image.ahead == 0) return;
  const char* soon = static_cast<const char*>(data) + image.ahead;
  for (int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(soon + i, 0, 2);
}

// `count` pixels of one row, `step` pixels apart, as they lie in planes.
template <class T>
BUNIT_INLINE void read_pixels(const Image& image, int64_t offset, int64_t step, T* target,
                              int64_t count) {
  if (image.lanes == 1) {
    const int64_t stride = step * image.stride_w;
    if (stride == 1) {
      const int64_t size = element_size(image.dtype);
      prefetch(image, static_cast<const char*>(image.data) + offset * size, count * size);
    }
    return read_row(image, offset, stride, target, count);
  }
  const T* source = static_cast<const T*>(image.data) + offset;
  if (step == 1) return copy_row(source, target, count * kLanes<T>);
  for (int64_t i = 0; i < count; ++i) {
    store(target + i * kLanes<T>, load(source + i * step * kLanes<T>));
  }
}
template <class T>
BUNIT_INLINE void write_pixels(const Image& image, int64_t offset, int64_t step, const T* source,
                               int64_t count) {
  if (image.lanes == 1) return write_row(image, offset, step * image.stride_w, source, count);
  T* target = static_cast<T*>(const_cast<void*>(image.data)) + offset;
  if (step == 1) return copy_row(source, target, count * kLanes<T>);
  for (int64_t i = 0; i < count; ++i) {
    store(target + i * step * kLanes<T>, load(source + i * kLanes<T>));
  }
}

// How an image's rows lie in a buffer of planes: channel c, phase (py, px) is plane
// (c * phases + py) * phases + px, whose row q holds image row q * stride + py - pad and whose
// column j holds image column j * stride + px - pad; what lies outside the image is zero. `row` and
// `plane` are in elements, of which a pixel has `lanes`.
struct PlaneMap {
  int64_t row, plane, lanes;
  int64_t stride, pad;
  int phases;
};

// Readers give `count` pixels of a channel's row, from column x on and `step` apart. Each pixel is
// made of those of one image or of two, by what with_channel(channel, use) calls `use` with.
struct ReadPixels {
  static constexpr bool kPlain = true;
  static constexpr int kSources = 1;
  const Image& image;
  int64_t n;

  const Image& source(int) const { return image; }

  template <class T, class F>
  BUNIT_INLINE void with_channel(int64_t, F use) const {
    use([](Vec<T> v) BUNIT_ALWAYS { return v; });
  }

  template <class T>
  BUNIT_INLINE void operator()(int64_t channel, int64_t y, int64_t x, int64_t step, T* target,
                               int64_t count) const {
    read_pixels(image, offset_of(image, n, channel, y, x), step, target, count);
  }
};

// Pixels normalised and activated; padding stays zero.
template <class T>
struct ReadNormalised {
  static constexpr bool kPlain = false;
  static constexpr int kSources = 1;
  const Image& image;
  int64_t n;
  const Norm& norm;
  Activation activation;
  T* spare;  // a row

  const Image& source(int) const { return image; }

  template <class, class F>
  BUNIT_INLINE void with_channel(int64_t channel, F use) const {
    const ChannelNorm<T> normalised(norm, channel);
    with_activation<T>(activation, [&](auto activated) BUNIT_ALWAYS {
      use([=](Vec<T> v) BUNIT_ALWAYS { return activated(normalised(v)); });
    });
  }

  BUNIT_INLINE void operator()(int64_t channel, int64_t y, int64_t x, int64_t step, T* target,
                               int64_t count) const {
    read_pixels(image, offset_of(image, n, channel, y, x), step, spare, count);
    with_channel<T>(channel, [&](auto value) BUNIT_ALWAYS {
      map_row(count * image.lanes, target,
              [&](auto load_at, int64_t i) BUNIT_ALWAYS { return value(load_at(spare + i)); });
    });
  }
};

// Whether rows are runs of T as they lie in planes.
template <class T>
BUNIT_INLINE bool has_plain_rows(const Image& image) {
  constexpr Scalar own = sizeof(T) == 8 ? Scalar::float64 : Scalar::float32;
  return image.dtype == own && image.stride_w == image.lanes;
}

// Elements at a time of rows that lie end to end: between them the next image is asked for.
constexpr int64_t kPiece = 256;

// load_planes for the commonest case, in which deciding anything row by row would take longer than
// the rest: plain rows, stride 1.
template <class T, class Reader>
void load_plain_planes(const Reader& read, int64_t channel, int channels, const PlaneMap& map,
                       int64_t base, int64_t q0, int64_t q1, T* planes) {
  constexpr int kSources = Reader::kSources;
  const Image& shape = read.source(0);
  const int64_t left = map.pad * map.lanes, width = shape.w * map.lanes;
  const int64_t top = at_most(at_least(q0, map.pad), q1);
  const int64_t bottom = at_least(at_most(q1, shape.h + map.pad), top);
  bool dense = map.row == width;  // on both sides
  for (int k = 0; k < kSources; ++k) dense = dense && read.source(k).stride_h == width;
  const int64_t rows = bottom - top;
  const int64_t count = dense ? (rows * width + kPiece - 1) / kPiece : rows;
  const int64_t length = dense ? kPiece : width;
  for (int c = 0; c < channels; ++c) {
    T* row = planes + c * map.plane + (q0 - base) * map.row;
    clear(row, (top - q0) * map.row);
    row += (top - q0) * map.row;
    clear(row, left);
    if (!dense) clear_each(row + left + width, rows, map.row, map.row - width);
    const T* from[kSources];
    for (int k = 0; k < kSources; ++k) {
      const Image& image = read.source(k);
      from[k] = static_cast<const T*>(image.data) +
                offset_of(image, read.n, channel + c, top - map.pad, 0);
    }
    read.template with_channel<T>(channel + c, [&](auto value) BUNIT_ALWAYS {
      T* target = row + left;
      for (int64_t q = 0; q < count; ++q) {
        const int64_t n = dense ? at_most(kPiece, rows * width - q * kPiece) : width;
        for (int k = 0; k < kSources; ++k) {
          prefetch(read.source(k), from[k], n * int64_t(sizeof(T)));
        }
        map_row(n, target, [&](auto load_at, int64_t i) BUNIT_ALWAYS {
          if constexpr (kSources == 1) {
            return value(load_at(from[0] + i));
          } else {
            return value(load_at(from[0] + i), load_at(from[1] + i));
          }
        });
        target += dense ? length : map.row;
        for (int k = 0; k < kSources; ++k) from[k] += dense ? length : read.source(k).stride_h;
      }
    });
    // And right padding of the last row.
    clear(row + rows * map.row, (q1 - bottom) * map.row + left);
  }
}

// Fills rows [q0, q1) of the planes of `channels` channels; `base` is the row the planes begin at.
template <class T, class Reader>
void load_planes(const Reader& read, int64_t height, int64_t width, bool dense, int64_t channel,
                 int channels, const PlaneMap& map, int64_t base, int64_t q0, int64_t q1,
                 T* planes) {
  const bool fits = map.row >= (map.pad + width) * map.lanes;
  bool plain = map.stride == 1 && fits;
  for (int k = 0; k < Reader::kSources; ++k) plain = plain && has_plain_rows<T>(read.source(k));
  if (plain) return load_plain_planes(read, channel, channels, map, base, q0, q1, planes);
  for (int c = 0; c < channels; ++c) {
    for (int py = 0; py < map.phases; ++py) {
      for (int px = 0; px < map.phases; ++px) {
        T* plane = planes + ((c * map.phases + py) * map.phases + px) * map.plane;
        if (Reader::kPlain && dense && map.stride == 1 && map.pad == 0 &&
            map.row == width * map.lanes) {
          // The rows lie end to end on both sides.
          const int64_t rows = at_least(at_most(q1, height) - q0, 0);
          T* target = plane + (q0 - base) * map.row;
          read(channel + c, q0, 0, 1, target, rows * width);
          clear(target + rows * map.row, (q1 - q0 - rows) * map.row);
          continue;
        }
        const int64_t first = at_least(ceil_div(map.pad - px, map.stride), 0);
        const int64_t columns = map.row / map.lanes;
        const int64_t last = at_most(ceil_div(width + map.pad - px, map.stride), columns);
        for (int64_t q = q0; q < q1; ++q) {
          T* row = plane + (q - base) * map.row;
          const int64_t y = q * map.stride + py - map.pad;
          if (y < 0 || y >= height || last <= first) {
            clear(row, map.row);
            continue;
          }
          clear(row, first * map.lanes);
          read(channel + c, y, first * map.stride + px - map.pad, map.stride,
               row + first * map.lanes, last - first);
          clear(row + last * map.lanes, map.row - last * map.lanes);
        }
        clear(plane + (q1 - base) * map.row, map.pad * map.lanes);  // right padding of the last row
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
  const bool dense = row == image.w * image.lanes && has_dense_rows(image);
  for (int c = 0; c < channels; ++c) {
    const T* source = planes + c * plane;
    const int64_t offset = offset_of(image, n, channel + c, y0, 0);
    if (dense) {
      write_pixels(image, offset, 1, source, rows * image.w);
      continue;
    }
    if (has_plain_rows<T>(image)) {
      T* target = static_cast<T*>(const_cast<void*>(image.data)) + offset;
      for (int64_t r = 0; r < rows; ++r, source += row, target += image.stride_h) {
        copy_row(source, target, image.w * image.lanes);
      }
      continue;
    }
    for (int64_t r = 0; r < rows; ++r) {
      write_pixels(image, offset + r * image.stride_h, 1, source + r * row, image.w);
    }
  }
}

}  // namespace bunit::BUNIT_ISA
