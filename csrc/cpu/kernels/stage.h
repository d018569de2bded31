// Images of other layouts as planes, and back.
//
// channels_last: pixels of one channel lie far apart, and a cache line holds several units'
// channels. So units that share lines are worked on together, on planes made by transposing blocks
// of a vector of pixels by a vector of channels in registers. A vector of images at a time: the
// same, of images by pixels or by channels, whichever lie next to each other.
#pragma once

#include "planes.h"

namespace bunit::BUNIT_ISA {

// What to ask for early: what the next piece of work begins with, `next` elements away. But of as
// many images as a vector has lanes, a few cache lines on: these are more streams than a processor
// follows by itself. (A training step of 64 units 2-4-4 of stride 2, N=128, 32x32, channels_last on
// one core of a Xeon took 240 instead of 335 ms, one of 2-4-2 at 8x8 on two cores 42 instead
// of 47.)
BUNIT_INLINE int64_t bytes_ahead(const Image& image, int64_t lanes, int64_t next) {
  const int64_t pixels = image.is_interleaved() ? 8 : 256 / element_size(image.dtype);
  return (lanes > 1 ? pixels * image.stride_w : next) * element_size(image.dtype);
}

// A block of kLanes rows, `step` elements apart, of `count` elements each, `stride` apart; turned
// about its diagonal on its way: element i of all rows becomes the vector at planes + i * plane.
template <class T>
struct Block {
  static constexpr int kN = kLanes<T>;
  const Image& image;
  int64_t offset, step, stride;
  int64_t count;  // at most kN

  // Whether rows are vectors of T, or the first lanes of one.
  BUNIT_INLINE bool is_plain() const {
    constexpr Scalar own = sizeof(T) == 8 ? Scalar::float64 : Scalar::float32;
    return image.dtype == own && stride == 1;
  }

  BUNIT_INLINE void read(T* planes, int64_t plane) const {
    if (!is_plain()) return read_converted(planes, plane);
    if (count < kN) return read_part(planes, plane);
    const T* source = static_cast<const T*>(image.data) + offset;
    Vec<T> rows[kN];
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) rows[i] = load(source + i * step);
    ask_for_next(source);
    transpose<T>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) store(planes + i * plane, rows[i]);
  }

  BUNIT_INLINE void ask_for_next(const T* source) const {
    if (image.ahead == 0) return;
    const char* soon = reinterpret_cast<const char*>(source) + image.ahead;
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) __builtin_prefetch(soon + i * step * int64_t(sizeof(T)), 0, 2);
  }

  __attribute__((noinline)) void read_part(T* planes, int64_t plane) const {
    const T* source = static_cast<const T*>(image.data) + offset;
    ask_for_next(source);
    Vec<T> rows[kN];
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) rows[i] = load_first(source + i * step, count);
    transpose<T>(rows);
    store_planes(rows, planes, plane);
  }

  __attribute__((noinline)) void read_converted(T* planes, int64_t plane) const {
    Vec<T> rows[kN];
    const int64_t few = at_most(count, kN);  // as it is; told to the compiler
    for (int i = 0; i < kN; ++i) {
      T lanes[kN] = {};
      read_row(image, offset + i * step, stride, lanes, few);
      rows[i] = load(lanes);
    }
    transpose<T>(rows);
    store_planes(rows, planes, plane);
  }

  BUNIT_INLINE void store_planes(const Vec<T> (&rows)[kN], T* planes, int64_t plane) const {
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) {  // told which, the compiler keeps them in registers
      if (i < count) store(planes + i * plane, rows[i]);
    }
  }

  BUNIT_INLINE void write(const T* planes, int64_t plane, bool around) const {
    if (!is_plain()) return write_converted(planes, plane);
    if (count < kN) return write_part(planes, plane);
    T* target = static_cast<T*>(const_cast<void*>(image.data)) + offset;
    Vec<T> rows[kN];
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) rows[i] = load(planes + i * plane);
    transpose<T>(rows);
    constexpr int64_t kAlign = sizeof(Vec<T>);
    if (around && reinterpret_cast<uintptr_t>(target) % kAlign == 0 &&
        step * int64_t(sizeof(T)) % kAlign == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) store_around(target + i * step, rows[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) store(target + i * step, rows[i]);
    }
  }

  BUNIT_INLINE void load_planes(Vec<T> (&rows)[kN], const T* planes, int64_t plane) const {
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) rows[i] = i < count ? load(planes + i * plane) : Vec<T>{};
  }

  __attribute__((noinline)) void write_part(const T* planes, int64_t plane) const {
    T* target = static_cast<T*>(const_cast<void*>(image.data)) + offset;
    Vec<T> rows[kN];
    load_planes(rows, planes, plane);
    transpose<T>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < kN; ++i) store_first(target + i * step, rows[i], count);
  }

  __attribute__((noinline)) void write_converted(const T* planes, int64_t plane) const {
    Vec<T> rows[kN];
    load_planes(rows, planes, plane);
    transpose<T>(rows);
    const int64_t few = at_most(count, kN);  // as it is; told to the compiler
    for (int i = 0; i < kN; ++i) {
      T lanes[kN];
      store(lanes, rows[i]);
      write_row(image, offset + i * step, stride, lanes, few);
    }
  }
};

// `pixels` pixels, `step` elements apart from `offset` on, of `channels` channels to planes.
template <class T>
void to_planes(const Image& image, int64_t offset, int64_t step, int64_t pixels, int64_t channels,
               T* planes, int64_t plane) {
  constexpr int kN = kLanes<T>;
  int64_t p = 0;
  for (; p + kN <= pixels; p += kN) {
    for (int64_t c = 0; c < channels; c += kN) {  // a cache line may hold several vectors
      Block<T>{image, offset + p * step + c, step, 1, at_most(kN, channels - c)}.read(
          planes + c * plane + p, plane);
    }
  }
  for (; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kN) {
      const int64_t width = at_most(kN, channels - c);
      T lanes[kN];
      read_row(image, offset + p * step + c, 1, lanes, width);
      for (int64_t i = 0; i < width; ++i) planes[(c + i) * plane + p] = lanes[i];
    }
  }
}

template <class T>
void from_planes(const Image& image, int64_t offset, int64_t step, int64_t pixels, int64_t channels,
                 const T* planes, int64_t plane, bool around = false) {
  constexpr int kN = kLanes<T>;
  int64_t p = 0;
  for (; p + kN <= pixels; p += kN) {
    for (int64_t c = 0; c < channels; c += kN) {
      Block<T>{image, offset + p * step + c, step, 1, at_most(kN, channels - c)}.write(
          planes + c * plane + p, plane, around);
    }
  }
  for (; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kN) {
      const int64_t width = at_most(kN, channels - c);
      T lanes[kN];
      for (int64_t i = 0; i < width; ++i) lanes[i] = planes[(c + i) * plane + p];
      write_row(image, offset + p * step + c, 1, lanes, width);
    }
  }
}

// Calls move(block, its place in the planes, elements from one of its vectors to the next) for
// `pixels` pixels of `channels` channels of a vector of images, from element `offset` of the first
// on; the planes have a vector a pixel.
template <class T, class F>
BUNIT_INLINE void for_each_lane_block(const Image& image, int64_t offset, int64_t pixels,
                                      int64_t channels, int64_t plane, F move) {
  constexpr int kN = kLanes<T>;
  if (image.is_interleaved()) {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t c = 0; c < channels; c += kN) {
        move(Block<T>{image, offset + p * image.stride_w + c, image.stride_n, 1,
                      at_most(kN, channels - c)},
             c * plane + p * kN, plane);
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; p += kN) {
      move(Block<T>{image, offset + c * image.stride_c + p * image.stride_w, image.stride_n,
                    image.stride_w, at_most(kN, pixels - p)},
           c * plane + p * kN, int64_t(kN));
    }
  }
}

template <class T>
void to_lanes(const Image& image, int64_t offset, int64_t pixels, int64_t channels, T* planes,
              int64_t plane) {
  for_each_lane_block<T>(image, offset, pixels, channels, plane,
                         [&](const Block<T>& block, int64_t at, int64_t step)
                             BUNIT_ALWAYS { block.read(planes + at, step); });
}

template <class T>
void from_lanes(const Image& image, int64_t offset, int64_t pixels, int64_t channels,
                const T* planes, int64_t plane, bool around) {
  for_each_lane_block<T>(image, offset, pixels, channels, plane,
                         [&](const Block<T>& block, int64_t at, int64_t step)
                             BUNIT_ALWAYS { block.write(planes + at, step, around); });
}

// Channels [c0, c1), rows [y0, y1) of `lanes` images as planes, which units read and write in their
// place.
struct Region {
  int64_t c0, c1, y0, y1, lanes;

  int64_t plane(const Image& image) const { return (y1 - y0) * image.w * lanes + kPlaneGap; }
  int64_t size(const Image& image) const { return (c1 - c0) * plane(image) + 64; }
};

// The stand-in for `image`, at `planes`: addressed like it, for any n.
template <class T>
Image planes_of(const Image& image, const Region& region, T* planes) {
  Image out = image;
  out.ahead = 0;
  out.shuffled = false;
  out.dtype = sizeof(T) == 8 ? Scalar::float64 : Scalar::float32;
  out.stride_n = 0;
  out.lanes = region.lanes;
  out.stride_c = region.plane(image);
  out.stride_h = image.w * region.lanes;
  out.stride_w = region.lanes;
  out.data = planes - (region.c0 * out.stride_c + region.y0 * out.stride_h);
  return out;
}

// Calls move(offset, pixels, first pixel's place in a plane) for each run of pixels.
template <class F>
BUNIT_INLINE void for_each_run(const Image& image, int64_t n, const Region& region, F move) {
  const int64_t offset = offset_of(image, n * region.lanes, region.c0, region.y0, 0);
  const int64_t rows = region.y1 - region.y0;
  if (has_dense_rows(image)) return move(offset, rows * image.w, int64_t(0));
  for (int64_t y = 0; y < rows; ++y) {
    move(offset + y * image.stride_h, image.w, y * image.w * region.lanes);
  }
}

template <class T>
void read_region(const Image& image, int64_t n, const Region& region, T* planes, int64_t plane) {
  for_each_run(image, n, region, [&](int64_t offset, int64_t pixels, int64_t at) {
    const int64_t channels = region.c1 - region.c0;
    if (region.lanes > 1) return to_lanes(image, offset, pixels, channels, planes + at, plane);
    to_planes(image, offset, image.stride_w, pixels, channels, planes + at, plane);
  });
}

template <class T>
Image stage_in(const Image& image, int64_t n, const Region& region, T* planes) {
  read_region(image, n, region, planes, region.plane(image));
  return planes_of(image, region, planes);
}

template <class T>
void stage_out(const Image& image, int64_t n, const Region& region, const T* planes, int64_t plane,
               bool around = false) {
  for_each_run(image, n, region, [&](int64_t offset, int64_t pixels, int64_t at) {
    const int64_t channels = region.c1 - region.c0;
    if (region.lanes > 1) {
      return from_lanes(image, offset, pixels, channels, planes + at, plane, around);
    }
    from_planes(image, offset, image.stride_w, pixels, channels, planes + at, plane, around);
  });
}

// Calls move(run, its place in the planes, elements from one of its planes to the next) for regions
// that together are `whole`, the output channels of units [first, last), which lie one after the
// other in the planes: in a shuffled image the same channel of neighbours of equal width.
template <class Unit, class F>
BUNIT_INLINE void for_each_out_region(const Image& image, const Unit* units, int64_t first,
                                      int64_t last, const Region& whole, F move) {
  const int64_t plane = whole.plane(image);
  if (!image.shuffled) return move(whole, int64_t(0), plane);
  for (int64_t u = first, next; u < last; u = next) {
    const OutChannels& out = units[u].out;
    next = u + 1;
    while (next < last && units[next].out.count == out.count) ++next;
    for (int64_t c = 0; c < out.count; ++c) {
      const Region run{out.places[c], out.places[c] + next - u, whole.y0, whole.y1, whole.lanes};
      move(run, (out.first + c - whole.c0) * plane, out.count * plane);
    }
  }
}

// stage_in and stage_out of the output channels of units [first, last).
template <class T, class Unit>
Image stage_in_outputs(const Image& image, int64_t n, const Unit* units, int64_t first,
                       int64_t last, const Region& whole, T* planes) {
  for_each_out_region(image, units, first, last, whole,
                      [&](const Region& run, int64_t at, int64_t plane) {
                        read_region(image, n, run, planes + at, plane);
                      });
  return planes_of(image, whole, planes);
}

template <class T, class Unit>
void stage_out_outputs(const Image& image, int64_t n, const Unit* units, int64_t first,
                       int64_t last, const Region& whole, const T* planes, bool around) {
  for_each_out_region(image, units, first, last, whole,
                      [&](const Region& run, int64_t at, int64_t plane) {
                        stage_out(image, n, run, planes + at, plane, around);
                      });
}

}  // namespace bunit::BUNIT_ISA
