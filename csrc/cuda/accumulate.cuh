// The inner loop of the convolutions: rows of one column of pixels of a few output channels, from
// planes in shared memory.
//
// A thread takes kRows pixels one below the other and a warp neighbouring columns, so that loads of
// a warp hit different banks and each load of a 3x3 kernel serves three rows: of 4 channels 48
// multiply-adds for 9 loads (6 of pixels, 3 of weights), of 2 channels on 8 rows 48 for 13. An SM
// does 4 such multiply-adds in the time of one load from shared memory.
#pragma once

#include "cuda/portable.h"

namespace bunit::gpu {

constexpr int kChannels = 4;  // output channels at a time

__host__ __device__ constexpr int strip_rows(int channels) { return channels > 2 ? 4 : 8; }

template <int Channels>
__device__ __forceinline__ void load_weights(const float* at, float (&w)[Channels]) {
  if constexpr (Channels == 4) {
    const float4 v = *reinterpret_cast<const float4*>(at);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else if constexpr (Channels == 2) {
    const float2 v = *reinterpret_cast<const float2*>(at);
    w[0] = v.x, w[1] = v.y;
  } else {
#pragma unroll
    for (int c = 0; c < Channels; ++c) w[c] = at[c];
  }
}

// Where a level's input pixels lie, relative to that of an output pixel.
struct Taps {
  int kernel, dilation, stride;
  int row, plane;  // elements from one row, one channel to the next
};

// acc[c][r] += sum over channels and taps. `weights` [c_in][kernel][kernel][Channels].
template <int Channels, int Rows>
__device__ __forceinline__ void accumulate(const float* in, const Taps& taps, int c_in,
                                           const float* weights, float (&acc)[Channels][Rows]) {
  if (taps.kernel == 3 && taps.dilation == 1 && taps.stride == 1) {
    for (int ci = 0; ci < c_in; ++ci, in += taps.plane, weights += 9 * Channels) {
#pragma unroll
      for (int kx = 0; kx < 3; ++kx) {
        float w[3][Channels];
#pragma unroll
        for (int ky = 0; ky < 3; ++ky) load_weights(weights + (ky * 3 + kx) * Channels, w[ky]);
#pragma unroll
        for (int i = 0; i < Rows + 2; ++i) {
          const float v = in[i * taps.row + kx];
#pragma unroll
          for (int ky = 0; ky < 3; ++ky) {
            if (i - ky < 0 || i - ky >= Rows) continue;
#pragma unroll
            for (int c = 0; c < Channels; ++c) acc[c][i - ky] += w[ky][c] * v;
          }
        }
      }
    }
    return;
  }
  for (int ci = 0; ci < c_in; ++ci, in += taps.plane) {
    for (int ky = 0; ky < taps.kernel; ++ky) {
      for (int kx = 0; kx < taps.kernel; ++kx, weights += Channels) {
        float w[Channels];
        load_weights(weights, w);
        const float* at = in + (ky * taps.row + kx) * taps.dilation;
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          const float v = at[r * taps.stride * taps.row];
#pragma unroll
          for (int c = 0; c < Channels; ++c) acc[c][r] += w[c] * v;
        }
      }
    }
  }
}

// Calls body(Count<1> to Count<kChannels>) for a block of at most kChannels channels.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <class F>
__device__ __forceinline__ void for_count(int channels, F body) {
  switch (channels) {
    case 1:
      return body(Count<1>{});
    case 2:
      return body(Count<2>{});
    case 3:
      return body(Count<3>{});
    default:
      return body(Count<4>{});
  }
}

}  // namespace bunit::gpu
