// Moments of rows of pixels, of a few channels side by side: the sums of one would wait for each
// other, and so would what is worked out of them.
#pragma once

#include "vec.h"

namespace bunit::BUNIT_ISA {

BUNIT_INLINE void merge(Moments& into, const Moments& more) {
  if (into.count == 0) {
    into = more;
    return;
  }
  const double count = into.count + more.count;
  const double delta = more.mean - into.mean;
  into.mean += delta * more.count / count;
  into.m2 += more.m2 + delta * delta * into.count * more.count / count;
  into.count = count;
}

// Merges `rows` rows of `width` elements of `Channels` planes into their moments. Distances are
// taken from the mean of a row, which is near that of all: nothing cancels, however large it is.
template <int Channels, class T>
BUNIT_INLINE void add_moments(const T* planes, int64_t plane, int64_t row, int64_t rows,
                              int64_t width, Moments* moments) {
  const auto for_each_vector = [&](const T* at, auto use) BUNIT_ALWAYS {
    int64_t i = 0;
    for (; i + kLanes<T> <= width; i += kLanes<T>) {
#pragma GCC unroll 4
      for (int c = 0; c < Channels; ++c) use(c, load(at + c * plane + i), ~Mask<T>{});
    }
    if (i == width) return;
    const Mask<T> valid = first_lanes<T>(width - i);
#pragma GCC unroll 4
    for (int c = 0; c < Channels; ++c) use(c, load(at + c * plane + i), valid);
  };

  Vec<T> totals[Channels] = {};
  for_each_vector(
      planes, [&](int c, Vec<T> v, Mask<T> valid) BUNIT_ALWAYS { totals[c] += keep<T>(v, valid); });
  T centers[Channels];
  sum_each<T>(totals, Channels, centers);
  for (int c = 0; c < Channels; ++c) centers[c] /= T(width);

  Vec<T> sums[2][Channels] = {};
  for (int64_t y = 0; y < rows; ++y) {
    for_each_vector(planes + y * row, [&](int c, Vec<T> v, Mask<T> valid) BUNIT_ALWAYS {
      const Vec<T> d = keep<T>(v - centers[c], valid);
      sums[0][c] += d;
      sums[1][c] += d * d;
    });
  }
  T of_lanes[2 * Channels];
  sum_each<T>(&sums[0][0], 2 * Channels, of_lanes);
  const double count = double(rows * width);
  for (int c = 0; c < Channels; ++c) {
    const double total = double(of_lanes[c]), shift = total / count;
    merge(moments[c],
          {count, double(centers[c]) + shift, double(of_lanes[Channels + c]) - total * shift});
  }
}

// The same of `channels` planes, up to four.
template <class T>
void add_moments(int channels, const T* planes, int64_t plane, int64_t row, int64_t rows,
                 int64_t width, Moments* moments) {
  switch (channels) {
    case 1:
      return add_moments<1>(planes, plane, row, rows, width, moments);
    case 2:
      return add_moments<2>(planes, plane, row, rows, width, moments);
    case 3:
      return add_moments<3>(planes, plane, row, rows, width, moments);
    default:
      return add_moments<4>(planes, plane, row, rows, width, moments);
  }
}

}  // namespace bunit::BUNIT_ISA
