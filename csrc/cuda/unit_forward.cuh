// A block takes tiles of the output of one unit, each of one image or several small ones; of
// several neighbouring units where their channels lie next to each other in memory. It packs the
// weights once, and for each tile reads the input with its halo once, keeps what lies between
// levels in shared memory, and writes the output once. Widths that are listed (fixed_widths.h) run
// compile-time code and others the general one, block by block, so that layers of both are one
// launch.

#pragma once

#include "cuda/unit_fixed.cuh"
#include "cuda/unit_forward_launch.h"
#include "cuda/unit_general.cuh"

namespace bunit::gpu {

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, Tiling::kBlocks)
    unit_forward_kernel(const __grid_constant__ UnitForwardCall call,
                        const __grid_constant__ Tiling tiling, const __grid_constant__ Runs runs) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  const int step = int(gridDim.x / unsigned(runs.items));
  const Run run(runs, item);
  const int unit = (item - run.first()) * run.kind().group;
#pragma unroll 1
  for (int at = int(blockIdx.x / unsigned(runs.items));
       at < tiling.tiles_y * tiling.tiles_x * tiling.image_groups; at += step) {
    const int tx = at % tiling.tiles_x, rest = at / tiling.tiles_x;
    const Region tile{rest % tiling.tiles_y * tiling.h, tx * tiling.w, tiling.h, tiling.w};
    const int n0 = rest / tiling.tiles_y * tiling.images;
    const Job job{run,  unit, min(run.kind().group, run.count() - unit),
                  tile, n0,   min(tiling.images, call.x.n - n0)};
    const bool later = at >= step;
    if (later) __syncthreads();  // the buffers of the tile before are free
    if (run.kind().code >= 0) {
      run_fixed<T>(call, tiling, job, shared, !later);
    } else {
      run_general<T>(call, tiling, job, shared);
    }
    if (!tiling.staged) continue;
    __syncthreads();
    // The last level went to the buffer that the first one's input was in, where levels are even.
    const float* from = shared + tiling.weights + (call.depth % 2 ? tiling.first : 0);
    store_tile<T>(call, job, from, tiling.out);
  }
}

template <class T>
void launch_unit_forward(const UnitForwardCall& call, const Tiling& tiling, const Runs& runs,
                         unsigned blocks, size_t bytes, cudaStream_t stream) {
  if (bytes > 48 * 1024) {
    cudaFuncSetAttribute(unit_forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         int(bytes));
  }
  BUNIT_LAUNCH((unit_forward_kernel<T>), dim3(blocks), dim3(Tiling::kThreads), bytes, stream, call,
               tiling, runs);
}

}  // namespace bunit::gpu
