// The work list of a launch: runs of equal neighbouring units, by value among the kernel's
// parameters, so that nothing is allocated or copied for it and CUDA graphs hold all of it. A block
// finds its unit by bisection. Layers of more than kMaxRuns runs take several launches.
#pragma once

#include <vector>

#include "cpu/stack.h"
#include "cuda/portable.h"

namespace bunit::gpu {

constexpr int kMaxRuns = 64;

struct Run {
  int first;  // item of the launch that its first unit begins with
  int count;  // units
  int kernel, pad;
  int widths[kMaxDepth + 1];
  int channels[kMaxDepth + 1];  // of its first unit
  int weights[kMaxDepth];       // where its first unit's block of a level's weight begins

  __host__ __device__ int64_t block(int level) const {  // elements of a unit's weight
    return int64_t(widths[level]) * widths[level + 1] * kernel * kernel;
  }
};

struct Runs {
  int count, items;
  Run runs[kMaxRuns];

  // The run of an item: the last that begins at or before it.
  __device__ const Run& of(int item) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (runs[middle].first <= item) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return runs[low];
  }
};

// Work lists of a stack's levels [level, level + depth), as if these were all; `items_of` says into
// how many items a unit of a run is split.
template <class F>
std::vector<Runs> runs_of(const Stack& stack, int level, int depth, F items_of) {
  std::vector<Runs> lists;
  const Unit* previous = nullptr;
  for (const Unit& unit : stack.units) {
    if (previous && previous->kind == unit.kind) {
      Runs& list = lists.back();
      Run& run = list.runs[list.count - 1];
      ++run.count;
      list.items += items_of(run);
      previous = &unit;
      continue;
    }
    if (lists.empty() || lists.back().count == kMaxRuns) lists.push_back({});
    Runs& list = lists.back();
    Run& run = list.runs[list.count++];
    run = {};
    run.first = list.items;
    run.count = 1;
    run.kernel = unit.kernel;
    run.pad = unit.pad;
    for (int l = 0; l <= depth; ++l) {
      run.widths[l] = unit.widths[level + l];
      run.channels[l] = int(unit.channels[level + l]);
    }
    for (int l = 0; l < depth; ++l) {
      STD_TORCH_CHECK(unit.weights[level + l] < (int64_t(1) << 31), "weights past 2^31 elements");
      run.weights[l] = int(unit.weights[level + l]);
    }
    list.items += items_of(run);
    previous = &unit;
  }
  return lists;
}

}  // namespace bunit::gpu
