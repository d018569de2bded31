// Sums over the threads of a block or warp, in a fixed order.
#pragma once

#include "cuda/portable.h"

namespace bunit::gpu {

// Adds up each of `Values` numbers over the block's threads; all threads get the sums. `shared` has
// room for Values floats a warp. All threads of the block take part.
template <int Threads, int Values>
__device__ void block_sum(float (&values)[Values], float* shared) {
  constexpr int kWarps = Threads / 32;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int v = 0; v < Values; ++v) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      values[v] += __shfl_xor_sync(0xffffffffu, values[v], bits);
    }
  }
  __syncthreads();  // what was in `shared` has been read
  if (lane == 0) {
#pragma unroll
    for (int v = 0; v < Values; ++v) shared[warp * Values + v] = values[v];
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < Values; ++v) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += shared[w * Values + v];
    values[v] = total;
  }
}

// What a lane holds after `warp_spread`: sums of values [first, first + count).
struct Spread {
  int first, count;
};

// Adds up each of `Values` numbers over the lanes of a warp, the sums spread over the lanes: lanes
// 16, 8, ... apart swap half of what they hold, so that 36 sums take 37 shuffles and not 180. All
// lanes of the warp take part.
template <int Values, int Bit = 16>
__device__ __forceinline__ Spread warp_spread(float* values, Spread held = {0, Values}) {
  if constexpr (Bit == 0) {
    return held;
  } else {
    constexpr int kHalf = (Values + 1) / 2;
    const bool upper = (int(threadIdx.x) & Bit) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float low = values[i], high = i + kHalf < Values ? values[i + kHalf] : 0.f;
      values[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, Bit);
    }
    if (upper) {
      held = {held.first + kHalf, max(held.count - kHalf, 0)};
    } else {
      held.count = min(held.count, kHalf);
    }
    return warp_spread<kHalf, Bit / 2>(values, held);
  }
}

// How many sums a lane may hold after it.
template <int Values>
constexpr int kSpread = (Values + 31) / 32;

}  // namespace bunit::gpu
