// A block takes a tile of the output of one unit, for one image or several small ones; of several
// neighbouring units where their channels lie next to each other in memory. It reads the input tile
// with its halo once, keeps what lies between levels in shared memory, and writes the output once.
// Widths that are listed (fixed_widths.h) run compile-time code and others the general one, block
// by block, so that layers of both are one launch.

#include "cuda/unit_forward.h"

#include <algorithm>

#include "cuda/unit_fixed.cuh"
#include "cuda/unit_general.cuh"

namespace bunit::gpu {
namespace {

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, Tiling::kBlocks)
    unit_forward_kernel(const __grid_constant__ UnitForwardCall call,
                        const __grid_constant__ Tiling tiling, const __grid_constant__ Runs runs) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  int place = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, item);
  const int unit = (item - run.first()) * run.kind().group;
  const int tx = place % tiling.tiles_x;
  place /= tiling.tiles_x;
  const Region tile{place % tiling.tiles_y * tiling.h, tx * tiling.w, tiling.h, tiling.w};
  const int n0 = place / tiling.tiles_y * tiling.images;
  const Job job{run,  unit, min(run.kind().group, run.count() - unit),
                tile, n0,   min(tiling.images, call.x.n - n0)};
  if (run.kind().code >= 0) {
    run_fixed<T>(call, tiling, job, shared);
  } else {
    run_general<T>(call, tiling, job, shared);
  }
  if (!tiling.staged) return;
  __syncthreads();
  // The last level went to the buffer that the first one's input was in, where levels are even.
  const float* from = shared + tiling.weights + (call.depth % 2 ? tiling.first : 0);
  store_tile<T>(call, job, from, tiling.out);
}

static_assert(sizeof(UnitForwardCall) + sizeof(Tiling) + sizeof(Runs) <= 4096);

// How many neighbours at once, of 4, 2 or 1, every multiple of it in a row (or, where channels lie
// next to each other, in the channels) can be read or written.
int vector_of(const View& v, int bytes) {
  const bool by_channel = v.stride_c == 1;
  const auto address = reinterpret_cast<uintptr_t>(v.data);
  if (!by_channel && v.stride_w != 1) return 1;
  for (const int together : {4, 2}) {
    const auto fits = [&](int64_t n) { return n % together == 0; };
    if (address % uintptr_t(together * bytes) == 0 && fits(v.stride_n) && fits(v.stride_h) &&
        fits(by_channel ? v.stride_w : v.stride_c) && (by_channel || fits(v.w))) {
      return together;
    }
  }
  return 1;
}

}  // namespace

bool unit_forward(const Layer& layer, const UnitForwardCall& call, const Tensor& x,
                  cudaStream_t stream) {
  const bool staged = call.y.stride_c == 1 || !few_instructions(call.out) ||
                      (call.residual.data && !few_instructions(call.after_residual));
  const int bytes_of_value = x.scalar_type() == ScalarType::Float ? 4 : 2;
  const auto plan = unit_plan(layer, call, bytes_of_value, staged);
  if (!plan->fits) return false;
  Tiling t = plan->tiling;
  t.x_vector = vector_of(call.x, bytes_of_value);
  t.y_pairs = vector_of(call.y, bytes_of_value) > 1;
  t.residual_pairs = call.residual.data && call.residual.stride_c != 1 &&
                     vector_of(call.residual, bytes_of_value) > 1;
  const int64_t tiles = int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
  const size_t bytes = size_t(t.weights + t.first + t.second) * sizeof(float);
  for (const Runs& runs : plan->list.launches) {
    STD_TORCH_CHECK(tiles * runs.items < (int64_t(1) << 31), "more than 2^31 tiles");
    for_dtype(x, [&](auto type) {
      using T = decltype(type);
      if (bytes > 48 * 1024) {
        cudaFuncSetAttribute(unit_forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(bytes));
      }
      BUNIT_LAUNCH((unit_forward_kernel<T>), dim3(unsigned(tiles * runs.items)),
                   dim3(Tiling::kThreads), bytes, stream, call, t, runs);
    });
    check_launch("unit_forward");
  }
  return true;
}

}  // namespace bunit::gpu
