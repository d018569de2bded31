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

// The work list, and how blocks share the rows.
struct Plan {
  WorkList list;
  Tiling tiling;
  size_t shared;
  bool fits;  // shared memory
};

// Sets what a block takes of shared memory; whether that is at most `bytes`.
bool fits(Plan& plan, int depth, int64_t bytes) {
  Tiling& t = plan.tiling;
  int weights = 0, planes = 0, sums = 0;
  for (const Kind& kind : plan.list.kinds) {
    const Places all = UnitShape{kind, depth}.before(depth);
    weights = std::max(weights, kind.group * all.weights);
    planes = std::max(planes, kind.group * all.hidden * (t.rows + 1));
    // Threads that share a block of weights are no more than the block of threads has.
    sums = std::max(sums, kSums * std::max(Tiling::kThreads, kind.group * all.blocks));
  }
  t.weights = weights;
  t.planes = planes;
  plan.shared = sizeof(float) * (size_t(weights) + size_t(planes) + size_t(sums));
  return int64_t(plan.shared) <= bytes;
}

// The most units that a warp can read together, and of these the most rows.
Plan make_plan(const Stack& stack, int rows) {
  for (const Unit& unit : stack.units) {
    for (int l = 0; l <= stack.depth; ++l) {
      if (unit.widths[l] > Tiling::kWidest) return {};
    }
  }
  for (const int64_t bytes : {Tiling::kSharedBytes, Tiling::kMostSharedBytes}) {
    for (int units = Tiling::kWide; units >= 1; units /= 2) {
      Plan plan{};
      Tiling& t = plan.tiling;
      plan.list = work_list(stack, 0, stack.depth, [&](Kind& kind, int longest_run) {
        const int widest = std::max(kind.widths[0], kind.widths[stack.depth]);
        kind.group = short(std::clamp(Tiling::kWide / widest, 1, std::min(units, longest_run)));
      });
      const int64_t groups = plan.list.items;
      for (t.rows = 128; t.rows >= 32; t.rows /= 2) {
        if (t.rows > 32 && groups * ceil_div(rows, t.rows) < Tiling::kFewBlocks) continue;
        plan.fits = fits(plan, stack.depth, bytes);
        if (!plan.fits) continue;
        const int wanted = int(std::clamp<int64_t>(Tiling::kBlocks / groups, 1, Tiling::kParts));
        t.parts = std::min(ceil_div(rows, t.rows), wanted);
        return plan;
      }
    }
  }
  return {};
}

// Made once for a layer and a number of rows.
std::shared_ptr<const Plan> plan_of(const Layer& layer, int rows) {
  using Key = std::pair<int64_t, int>;
  static BoundedCache<Key, Plan, 128> plans;
  return plans.get(Key{layer.number, rows}, [&] { return make_plan(layer.stack, rows); });
}

void add_parts(const float* parts, int count, int64_t size, const Sums& sums, const Context& on) {
  for_dtype(on.dtype, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((add_parts_kernel<T>), dim3(unsigned(ceil_div(size, Tiling::kThreads))),
                 dim3(Tiling::kThreads), 0, on.stream, parts, count, size, sums);
  });
  check_launch("add_parts");
}

}  // namespace

bool unit_linear_backward(const Layer& layer, const UnitLinearBackwardCall& call,
                          const std::vector<Array>& grad_weights,
                          const std::vector<Array>& grad_biases, const Context& on) {
  const auto plan = plan_of(layer, call.rows);
  if (!plan->fits) return false;
  Tiling t = plan->tiling;
  Sums sums{};
  const auto place = [&](const std::vector<Array>& gradients, int64_t* begins) {
    for (size_t l = 0; l < gradients.size(); ++l) {
      begins[l] = t.sums_size;
      t.sums_size += gradients[l].size;
      sums.to[sums.count] = gradients[l].data;
      sums.ends[sums.count++] = t.sums_size;
    }
  };
  place(grad_weights, t.weight_sums);
  place(grad_biases, t.bias_sums);
  float* const parts = on.workspace(t.parts * t.sums_size);
  for (const Runs& runs : plan->list.launches) {
    STD_TORCH_CHECK(int64_t(t.parts) * runs.items < (int64_t(1) << 31), "more than 2^31 blocks");
    for_dtype(on.dtype, [&](auto type) {
      using T = decltype(type);
      if (plan->shared > 48 * 1024) {
        cudaFuncSetAttribute(unit_linear_backward_kernel<T>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(plan->shared));
      }
      BUNIT_LAUNCH((unit_linear_backward_kernel<T>), dim3(unsigned(t.parts * runs.items)),
                   dim3(Tiling::kThreads), plan->shared, on.stream, call, t, runs, parts);
    });
    check_launch("unit_linear_backward");
  }
  add_parts(parts, t.parts, t.sums_size, sums, on);
  return true;
}

}  // namespace bunit::gpu
