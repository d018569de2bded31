// channels_last images: the channels of a few units as planes, and back.
//
// Pixels of one channel lie far apart there, and a cache line holds several units' channels. So
// units that share lines are worked on together, on planes made by transposing blocks of a vector
// of pixels by a vector of channels in registers.
#pragma once

#include "planes.h"

namespace bunit::BUNIT_ISA {

// `pixels` pixels, `step` elements apart from `offset` on, of `channels` channels to planes.
template <class T>
void to_planes(const Image& image, int64_t offset, int64_t step, int64_t pixels, int64_t channels,
               T* planes, int64_t plane) {
  constexpr int kN = kLanes<T>;
  for (int64_t c = 0; c < channels; c += kN) {
    const int64_t width = at_most(kN, channels - c);
    int64_t p = 0;
    for (; p + kN <= pixels; p += kN) {
      Vec<T> block[kN];
      for (int i = 0; i < kN; ++i) {
        T lanes[kN] = {};
        read_row(image, offset + (p + i) * step + c, 1, lanes, width);
        block[i] = load(lanes);
      }
      transpose<T>(block);
      for (int64_t i = 0; i < width; ++i) store(planes + (c + i) * plane + p, block[i]);
    }
    for (; p < pixels; ++p) {
      T lanes[kN];
      read_row(image, offset + p * step + c, 1, lanes, width);
      for (int64_t i = 0; i < width; ++i) planes[(c + i) * plane + p] = lanes[i];
    }
  }
}

template <class T>
void from_planes(const Image& image, int64_t offset, int64_t step, int64_t pixels, int64_t channels,
                 const T* planes, int64_t plane) {
  constexpr int kN = kLanes<T>;
  for (int64_t c = 0; c < channels; c += kN) {
    const int64_t width = at_most(kN, channels - c);
    int64_t p = 0;
    for (; p + kN <= pixels; p += kN) {
      Vec<T> block[kN];
      for (int i = 0; i < kN; ++i) {
        block[i] = i < width ? load(planes + (c + i) * plane + p) : Vec<T>{};
      }
      transpose<T>(block);
      for (int i = 0; i < kN; ++i) {
        T lanes[kN];
        store(lanes, block[i]);
        write_row(image, offset + (p + i) * step + c, 1, lanes, width);
      }
    }
    for (; p < pixels; ++p) {
      T lanes[kN];
      for (int64_t i = 0; i < width; ++i) lanes[i] = planes[(c + i) * plane + p];
      write_row(image, offset + p * step + c, 1, lanes, width);
    }
  }
}

// Channels [c0, c1), rows [y0, y1) of one image as planes, which units read and write in its place.
struct Region {
  int64_t c0, c1, y0, y1;

  int64_t plane(const Image& image) const { return (y1 - y0) * image.w; }
  int64_t size(const Image& image) const { return (c1 - c0) * plane(image) + 64; }
};

// The stand-in for `image`, at `planes`: addressed like it, for any n.
template <class T>
Image planes_of(const Image& image, const Region& region, T* planes) {
  Image out = image;
  out.dtype = sizeof(T) == 8 ? Scalar::float64 : Scalar::float32;
  out.stride_n = 0;
  out.stride_c = region.plane(image);
  out.stride_h = image.w;
  out.stride_w = 1;
  out.data = planes - (region.c0 * out.stride_c + region.y0 * image.w);
  return out;
}

// Calls move(offset, pixels, first pixel's place in a plane) for each run of pixels.
template <class F>
BUNIT_INLINE void for_each_run(const Image& image, int64_t n, const Region& region, F move) {
  const int64_t offset = offset_of(image, n, region.c0, region.y0, 0);
  const int64_t rows = region.y1 - region.y0;
  if (has_dense_rows(image)) return move(offset, rows * image.w, int64_t(0));
  for (int64_t y = 0; y < rows; ++y) move(offset + y * image.stride_h, image.w, y * image.w);
}

template <class T>
Image stage_in(const Image& image, int64_t n, const Region& region, T* planes) {
  for_each_run(image, n, region, [&](int64_t offset, int64_t pixels, int64_t at) {
    to_planes(image, offset, image.stride_w, pixels, region.c1 - region.c0, planes + at,
              region.plane(image));
  });
  return planes_of(image, region, planes);
}

template <class T>
void stage_out(const Image& image, int64_t n, const Region& region, const T* planes,
               int64_t plane) {
  for_each_run(image, n, region, [&](int64_t offset, int64_t pixels, int64_t at) {
    from_planes(image, offset, image.stride_w, pixels, region.c1 - region.c0, planes + at, plane);
  });
}

// Whether an image's channels lie next to each other and so are better staged.
BUNIT_INLINE bool is_interleaved(const Image& image) {
  return image.data && image.stride_c == 1 && image.c > 1 && image.h * image.w > 1;
}

}  // namespace bunit::BUNIT_ISA
