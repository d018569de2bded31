// Sums over the threads of a block, in a fixed order.
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

}  // namespace bunit::gpu
