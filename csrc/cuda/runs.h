// The work list of a launch: runs of equal neighbouring units, by value among the kernel's
// parameters, so that nothing is allocated or copied for it and CUDA graphs hold all of it.
//
// A run is two bytes, its length and its place in a table of kinds. Where it begins a block adds up
// from the last mark before it; marks are eight runs apart and found by bisection. So 256 runs, 256
// units of which no two neighbours are equal, are 3.4 KB, and with a kernel's other parameters less
// than the 4 KB that every driver takes. Layers with more take several launches.
#pragma once

#include <functional>
#include <vector>

#include "cpu/stack.h"
#include "cuda/portable.h"

namespace bunit::gpu {

// The shape of a unit, of the levels that a launch works on.
struct Kind {
  short kernel, pad;
  short widths[kMaxDepth + 1];
  short group;  // neighbouring units of a run that a block takes
  short code;   // what the kernel knows it by, or -1
  int items;    // blocks that such a group is split into

  __host__ __device__ int64_t block(int level) const {  // elements of a unit's weight
    return int64_t(widths[level]) * widths[level + 1] * kernel * kernel;
  }
  __host__ __device__ int items_of(int units) const { return (units + group - 1) / group * items; }
};

struct Runs {
  static constexpr int kMaxRuns = 256, kMaxKinds = 20, kStep = 8;
  static constexpr int kMostUnits = 248;  // of a run, fits a byte, and eight units may be a group

  struct Units {
    unsigned char kind, count;
  };
  struct Mark {
    int item;                     // of the launch, that its run begins with
    int channels[kMaxDepth + 1];  // of its run's first unit
    int weights[kMaxDepth];       // where that unit's block of a level's weight begins
  };

  int count, items;
  Kind kinds[kMaxKinds];
  Units units[kMaxRuns];
  Mark marks[kMaxRuns / kStep];
};

// A run as a block sees it.
class Run {
 public:
  // The one that an item belongs to: the last that begins at or before it.
  __device__ Run(const Runs& runs, int item) : runs_(runs) {
    int low = 0, high = (runs.count - 1) / Runs::kStep;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (runs.marks[middle].item <= item) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    mark_ = low;
    run_ = low * Runs::kStep;
    first_ = runs.marks[low].item;
    for (;;) {
      const int next = first_ + runs.kinds[runs.units[run_].kind].items_of(count());
      if (next > item) break;
      first_ = next;
      ++run_;
    }
    kind_ = runs.units[run_].kind;
  }

  __device__ const Kind& kind() const { return runs_.kinds[kind_]; }
  __device__ int count() const { return runs_.units[run_].count; }  // units
  __device__ int first() const { return first_; }                   // item
  // Of the first unit: its first channel between levels, its block in a level's weight.
  __device__ int channel(int level) const {
    int at = runs_.marks[mark_].channels[level];
    for (int r = mark_ * Runs::kStep; r < run_; ++r) {
      at += runs_.units[r].count * runs_.kinds[runs_.units[r].kind].widths[level];
    }
    return at;
  }
  __device__ int64_t weight(int level) const {
    int64_t at = runs_.marks[mark_].weights[level];
    for (int r = mark_ * Runs::kStep; r < run_; ++r) {
      at += runs_.units[r].count * runs_.kinds[runs_.units[r].kind].block(level);
    }
    return at;
  }

 private:
  const Runs& runs_;
  int mark_, run_, first_, kind_;
};

// One level of one unit of a run as a block sees it; `turned`, from the level's output to its
// input.
struct LevelUnit {
  const Kind& kind;
  int first_in, first_out;  // channels
  int64_t weight;           // where its block of the level's weight begins

  __device__ LevelUnit(const Run& run, int unit, bool turned = false)
      : kind(run.kind()),
        first_in(run.channel(turned) + unit * kind.widths[turned]),
        first_out(run.channel(!turned) + unit * kind.widths[!turned]),
        weight(run.weight(0) + unit * kind.block(0)) {}
};

// The launches that a kernel takes for some levels of a stack.
struct WorkList {
  std::vector<Runs> launches;
  std::vector<Kind> kinds;  // of all launches
  std::vector<int> units;   // of each kind
  int64_t items = 0;        // of all launches
};

// Sets a kind's group (at most the units of its longest run), items and code.
using Prepare = std::function<void(Kind& kind, int longest_run)>;

// Of levels [level, level + depth), as if these were all.
WorkList work_list(const Stack& stack, int level, int depth, const Prepare& prepare);

}  // namespace bunit::gpu
