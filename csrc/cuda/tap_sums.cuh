// The inner loop of the weights' gradients: sums, over the pixels of a tile, of products of a few
// planes' values with those that the taps of a kernel find in other planes, both in shared memory.
//
// A lane takes strips of pixels one below the other and keeps 4 x 9 sums: of a 3x3 kernel 144
// multiply-adds for 34 loads. An SM does 4 such multiply-adds in the time of one load from shared
// memory. Which of the two is the level's input and which its output's gradient is the caller's
// choice.
#pragma once

#include "cuda/accumulate.cuh"
#include "cuda/block_sum.cuh"

namespace bunit::gpu {

constexpr int kTaps = 9;  // at a time

struct TapPixels {
  int images, h, w;       // those that count
  int row, image, plane;  // elements to the next of the planes that are taken as they are
  int tap_row, tap_image, tap_plane;  // of those that taps reach into
  int kernel, dilation, stride;
};

// Of the products with taps [first, first + kTaps) of `taps`, those of one plane after the other.
template <int Channels>
__device__ __forceinline__ void tap_sums(const float* values, const float* tapped,
                                         const TapPixels& of, int first, int taps, int begin,
                                         int step, float (&sums)[Channels * kTaps]) {
  constexpr int kRows = 4;
  const int area = of.kernel * of.kernel, strips = (of.h + kRows - 1) / kRows;
  const bool dense = of.kernel == 3 && of.dilation == 1 && of.stride == 1;
  int reach[kTaps];
#pragma unroll
  for (int i = 0; i < kTaps; ++i) {
    const int tap = min(first + i, taps - 1), t = tap % area;
    reach[i] =
        tap / area * of.tap_plane + (t / of.kernel * of.tap_row + t % of.kernel) * of.dilation;
  }
#pragma unroll 1
  for (int p = begin; p < of.images * strips * of.w; p += step) {
    const int x = p % of.w, y = p / of.w % strips * kRows, image = p / of.w / strips;
    const float* own = values + image * of.image + y * of.row + x;
    const float* at = tapped + image * of.tap_image + (y * of.tap_row + x) * of.stride;
    if (dense && y + kRows <= of.h) {
      at += reach[0];
      float v[Channels][kRows];
#pragma unroll
      for (int c = 0; c < Channels; ++c) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) v[c][r] = own[c * of.plane + r * of.row];
      }
#pragma unroll
      for (int i = 0; i < kRows + 2; ++i) {
#pragma unroll
        for (int kx = 0; kx < 3; ++kx) {
          const float u = at[i * of.tap_row + kx];
#pragma unroll
          for (int ky = 0; ky < 3; ++ky) {
            if (i - ky < 0 || i - ky >= kRows) continue;
#pragma unroll
            for (int c = 0; c < Channels; ++c) sums[c * kTaps + ky * 3 + kx] += v[c][i - ky] * u;
          }
        }
      }
      continue;
    }
    for (int r = 0; r < min(kRows, of.h - y); ++r) {
      float v[Channels];
#pragma unroll
      for (int c = 0; c < Channels; ++c) v[c] = own[c * of.plane + r * of.row];
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        const float u = at[r * of.stride * of.tap_row + reach[i]];
#pragma unroll
        for (int c = 0; c < Channels; ++c) sums[c * kTaps + i] += v[c] * u;
      }
    }
  }
}

// How a block's warps share the sums of `planes` planes with `taps` (planes times area) taps: each
// task is a few planes and taps; where there are fewer tasks than warps, several warps take slices
// of the pixels, each with totals of its own.
template <int Warps>
struct TapTasks {
  int planes, taps, groups, tasks, slices;

  __host__ __device__ TapTasks(int planes, int taps)
      : planes(planes),
        taps(taps),
        groups((taps + kTaps - 1) / kTaps),
        tasks((planes + kChannels - 1) / kChannels * groups),
        slices(tasks >= Warps ? 1 : Warps / tasks) {}

  // Calls add(slice, plane, tap, sum) for each sum over the tile; for one sum always in the same
  // thread, whatever the tile.
  template <class F>
  __device__ void run(const float* values, const float* tapped, const TapPixels& of, F add) const {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
#pragma unroll 1
    for (int i = warp; i < tasks * slices; i += Warps) {
      const int slice = i / tasks, task = i % tasks;
      const int first = task % groups * kTaps, plane = task / groups * kChannels;
      for_count(min(kChannels, planes - plane), [&](auto count) {
        constexpr int C = decltype(count)::value;
        float sums[C * kTaps] = {};
        tap_sums<C>(values + plane * of.plane, tapped, of, first, taps, slice * 32 + lane,
                    slices * 32, sums);
        const Spread held = warp_spread<C * kTaps>(sums);
#pragma unroll
        for (int k = 0; k < kSpread<C * kTaps>; ++k) {
          const int at = held.first + k, tap = first + at % kTaps;
          if (k < held.count && tap < taps) add(slice, plane + at / kTaps, tap, sums[k]);
        }
      });
    }
  }
};

}  // namespace bunit::gpu
