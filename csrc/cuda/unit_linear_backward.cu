// How the backward pass of linear units is split into blocks, and what adds their sums up.

#include "cuda/unit_linear_backward.h"

#include <algorithm>

#include "cuda/unit_linear_backward.cuh"

namespace bunit::gpu {
namespace {

struct Sums {
  int count;
  void* to[2 * kMaxDepth];
  int64_t ends[2 * kMaxDepth];  // of each tensor among the sums
};

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads)
    add_parts_kernel(const float* parts, int count, int64_t size,
                     const __grid_constant__ Sums sums) {
  const int64_t i = int64_t(blockIdx.x) * Tiling::kThreads + threadIdx.x;
  if (i >= size) return;
  double total = 0;
  for (int part = 0; part < count; ++part) total += double(parts[part * size + i]);
  int tensor = 0;
  while (i >= sums.ends[tensor]) ++tensor;
  const int64_t begin = tensor == 0 ? 0 : sums.ends[tensor - 1];
  static_cast<T*>(sums.to[tensor])[i - begin] = from_float<T>(float(total));
}

std::vector<Runs> groups_of(const Stack& stack, int units) {
  return runs_of(stack, 0, stack.depth, [&](const Run& run) {
    return (run.count - 1) % group_units(run, stack.depth, units) == 0;
  });
}

// Sets what a block takes of shared memory; whether that is at most `bytes`.
bool fits(const std::vector<Runs>& lists, int depth, int64_t bytes, Tiling& t, size_t& shared) {
  int weights = 0, planes = 0, sums = 0;
  for (const Runs& list : lists) {
    for (int r = 0; r < list.count; ++r) {
      const Run& run = list.runs[r];
      const Places all = UnitShape{run, depth}.before(depth);
      const int units = group_units(run, depth, t.units);
      weights = std::max(weights, units * all.weights);
      planes = std::max(planes, units * all.hidden * (t.rows + 1));
      // Threads that share a block of weights are no more than the block of threads has.
      sums = std::max(sums, kSums * std::max(Tiling::kThreads, units * all.blocks));
    }
  }
  t.weights = weights;
  t.planes = planes;
  shared = sizeof(float) * (size_t(weights) + size_t(planes) + size_t(sums));
  return int64_t(shared) <= bytes;
}

// The most units that a warp can read together, and of these the most rows; the work lists, or none
// where nothing fits.
std::vector<Runs> choose_tiles(const Stack& stack, int rows, Tiling& t, size_t& shared) {
  for (const Unit& unit : stack.units) {
    for (int l = 0; l <= stack.depth; ++l) {
      if (unit.widths[l] > Tiling::kWidest) return {};
    }
  }
  for (const int64_t bytes : {Tiling::kSharedBytes, Tiling::kMostSharedBytes}) {
    for (t.units = Tiling::kWide; t.units >= 1; t.units /= 2) {
      const std::vector<Runs> lists = groups_of(stack, t.units);
      int64_t groups = 0;
      for (const Runs& list : lists) groups += list.items;
      for (t.rows = 128; t.rows >= 32; t.rows /= 2) {
        if (t.rows > 32 && groups * ceil_div(rows, t.rows) < Tiling::kFewBlocks) continue;
        if (!fits(lists, stack.depth, bytes, t, shared)) continue;
        const int wanted = int(std::clamp<int64_t>(Tiling::kBlocks / groups, 1, Tiling::kParts));
        t.parts = std::min(ceil_div(rows, t.rows), wanted);
        return lists;
      }
    }
  }
  return {};
}

void add_parts(const float* parts, int count, int64_t size, const Sums& sums, const Tensor& like,
               cudaStream_t stream) {
  for_dtype(like, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((add_parts_kernel<T>), dim3(unsigned(ceil_div(size, Tiling::kThreads))),
                 dim3(Tiling::kThreads), 0, stream, parts, count, size, sums);
  });
  check_launch("add_parts");
}

}  // namespace

bool unit_linear_backward(const Stack& stack, const UnitLinearBackwardCall& call, const Tensor& x,
                          std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases,
                          cudaStream_t stream) {
  Tiling t{};
  size_t shared = 0;
  const std::vector<Runs> lists = choose_tiles(stack, call.rows, t, shared);
  if (lists.empty()) return false;
  Sums sums{};
  const auto place = [&](std::vector<Tensor>& gradients, int64_t* begins) {
    for (size_t l = 0; l < gradients.size(); ++l) {
      begins[l] = t.sums_size;
      t.sums_size += gradients[l].numel();
      sums.to[sums.count] = gradients[l].mutable_data_ptr();
      sums.ends[sums.count++] = t.sums_size;
    }
  };
  place(grad_weights, t.weight_sums);
  place(grad_biases, t.bias_sums);
  Tensor parts = new_tensor(x, {t.parts, t.sums_size}, ScalarType::Float);
  for (const Runs& list : lists) {
    STD_TORCH_CHECK(int64_t(t.parts) * list.items < (int64_t(1) << 31), "more than 2^31 blocks");
    for_dtype(x, [&](auto type) {
      using T = decltype(type);
      if (shared > 48 * 1024) {
        cudaFuncSetAttribute(unit_linear_backward_kernel<T>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
      }
      BUNIT_LAUNCH((unit_linear_backward_kernel<T>), dim3(unsigned(t.parts * list.items)),
                   dim3(Tiling::kThreads), shared, stream, call, t, list, floats(parts));
    });
    check_launch("unit_linear_backward");
  }
  add_parts(floats(parts), t.parts, t.sums_size, sums, x, stream);
  return true;
}

}  // namespace bunit::gpu
