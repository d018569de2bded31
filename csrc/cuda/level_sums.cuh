// What a level's kernel adds up of its output before it stores it, for the norm behind or before
// it.
#pragma once

#include "cuda/block_sum.cuh"
#include "cuda/finish.h"
#include "cuda/values.cuh"

namespace bunit::gpu {

// Moments of the block's valid values of each channel, without cancellation: mean first, then the
// distances from it.
template <int Threads, int C, int R>
__device__ void write_moments(const float (&acc)[C][R], const bool (&valid)[R], Moments* to,
                              float* shared) {
  float sums[C + 1] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) sums[c] += valid[r] ? acc[c][r] : 0.f;
    sums[C] += valid[r] ? 1.f : 0.f;
  }
  block_sum<Threads>(sums, shared);
  float squares[C] = {};
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float mean = sums[c] / sums[C];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float d = acc[c][r] - mean;
      squares[c] += valid[r] ? d * d : 0.f;
    }
  }
  block_sum<Threads>(squares, shared);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int c = 0; c < C; ++c) to[c] = {sums[c] / sums[C], squares[c], sums[C]};
}

// Where the first of a thread's values lies.
struct FirstValue {
  int n, c, y, x;
};

// Takes the gradient of a block's input through the activation before it, and adds up what the
// gradient of that norm needs: channel after channel, as registers are few.
template <int Threads, class T, int C, int R>
__device__ void through_norm(const Source& before, const FirstValue& at, const bool (&valid)[R],
                             float (&acc)[C][R], float2* to, float* shared) {
  const int64_t pixel = before.view.offset(at.n, at.c, at.y, at.x);
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const ChannelNorm norm(before.norm, at.c + c);
    float sums[2] = {};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!valid[r]) continue;
      const float z =
          before.view.read<T>(pixel + c * before.view.stride_c + r * before.view.stride_h);
      const float d = z - norm.mean;
      acc[c][r] = activation_grad(before.activation, d * norm.scale + norm.shift, acc[c][r]);
      sums[0] += acc[c][r];
      sums[1] += acc[c][r] * d;
    }
    block_sum<Threads>(sums, shared);
    if (threadIdx.x == 0) to[c] = make_float2(sums[0], sums[1] * before.norm.inv_std[at.c + c]);
  }
}

}  // namespace bunit::gpu
