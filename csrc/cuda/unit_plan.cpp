#include "cuda/unit_plan.h"

#include <algorithm>
#include <array>

#include "cuda/accumulate.cuh"
#include "cuda/fixed_widths.h"

namespace bunit::gpu {
namespace {

// Four blocks or more a processor; more memory where a tile would otherwise be all halo.
constexpr int64_t kSharedBytes = 44 * 1024, kMostSharedBytes = 96 * 1024;
constexpr int kFewestPixels = 64, kMostSide = 64, kMostImages = 16;
constexpr int kSectorBytes = 32;  // what global memory is read in
constexpr int kMostGroup = 8;
constexpr int kProcessors = 132;  // of an H200; others are near enough for a choice of tiles
// What a block costs beside its multiply-adds, in multiply-adds of a thread: a value loaded or
// stored, and the block itself. Estimates, to be measured.
constexpr double kCostOfValue = 3, kCostOfBlock = 400;

// The smallest even number, from `least` on, of floats whose `times`-fold lies `banks` banks of
// shared memory further on: where pairs of columns of a few rows (or images) are read at once, so
// that these lie side by side in the banks.
int spaced(int least, int times, int banks) {
  for (int n = round_up(least, 2); n < least + 32; n += 2) {
    if ((n * times - banks) % 32 == 0) return n;
  }
  return least;
}

// Planes of `rows` rows of at least `least` floats, read by `threads` with rows `step` apart.
Planes planes_for(int least, int odd, int rows, int step, const Patches& threads) {
  Planes p{};
  const int across = int(threads.across.by), image = across * int(threads.down.by);
  p.odd = odd;
  p.pitch = across < 16 ? spaced(least, step, round_up(2 * across, 8)) : least;
  p.image = image < 16 ? spaced(rows * p.pitch, 1, 2 * image) : rows * p.pitch;
  p.plane = p.image * int(threads.images.by);
  return p;
}

class Planner {
 public:
  Planner(const WorkList& list, const UnitForwardCall& call, bool staged)
      : list_(list), call_(call), staged_(staged) {}

  // The cheapest tiling in so many bytes, and whether there is any.
  bool choose(int64_t bytes, Tiling& best) const {
    double least = 0;
    for (int h : sizes(call_.y.h, Patches::kRows)) {
      for (int w : sizes(call_.y.w, Patches::kColumns)) {
        const int pixels = std::max(1, 1024 / (h * w));
        for (int images = std::min({pixels, kMostImages, call_.y.n}); images > 0; images /= 2) {
          if (h * w * images < std::min(kFewestPixels, call_.y.h * call_.y.w)) break;
          Tiling t = tiling(h, w, images);
          double cost = 0;
          if (!measure(t, bytes / 4, cost)) continue;
          if (least == 0 || cost < least) {
            least = cost;
            best = t;
          }
        }
      }
    }
    return least > 0;
  }

 private:
  // Sides of tiles: a size in equal parts.
  static std::vector<int> sizes(int size, int step) {
    std::vector<int> found;
    for (int parts = 1; found.size() < 8; ++parts) {
      const int side = std::min(size, round_up(ceil_div(size, parts), step));
      if (side <= kMostSide && (found.empty() || side < found.back())) found.push_back(side);
      if (side <= step) break;
    }
    return found;
  }

  Tiling tiling(int h, int w, int images) const {
    Tiling t{};
    t.h = h;
    t.w = w;
    t.images = images;
    t.tiles_y = ceil_div(call_.y.h, h);
    t.tiles_x = ceil_div(call_.y.w, w);
    t.image_groups = ceil_div(call_.y.n, images);
    t.staged = staged_;
    t.second_level = Patches(h, w, images);
    t.out.pitch = round_up(w, Patches::kColumns);
    t.out.image = t.out.pitch * round_up(h, Patches::kRows);
    t.out.plane = t.out.image * images;
    for (const Kind& kind : list_.kinds) {
      if (kind.code < 0) continue;
      // One padding and so one geometry: units of a layer have outputs of one size.
      const int across = level_size(call_.x.w, kind, 1, call_.stride);
      const int down = level_size(call_.x.h, kind, 1, call_.stride);
      t.first_level = Patches(std::min(h + 2, down), std::min(w + 2, across), images);
      const int columns = int(t.first_level.across.by) * Patches::kColumns;
      const int rows = int(t.first_level.down.by) * Patches::kRows;
      const bool split = call_.stride == 2;
      t.in =
          planes_for(split ? 2 * columns + 2 : columns + 2, split ? columns + 2 : 0,
                     (rows - 1) * call_.stride + 3, Patches::kRows * call_.stride, t.first_level);
      t.hidden = planes_for(t.out.pitch + 2, 0, round_up(h, Patches::kRows) + 2, Patches::kRows,
                            t.second_level);
    }
    return t;
  }

  // Fills in a tiling's shared memory; whether it is at most `floats`, and what all blocks cost.
  bool measure(Tiling& t, int64_t floats, double& cost) const {
    int64_t weights = 0, buffers[2] = {0, 0};
    for (size_t k = 0; k < list_.kinds.size(); ++k) {
      const Kind& kind = list_.kinds[k];
      int64_t own = 0, size[2] = {0, 0};
      double one = kCostOfBlock;
      if (kind.code < 0) {
        general(kind, t, own, size, one);
      } else {
        fixed(kind, t, own, size, one);
      }
      int64_t& last = size[call_.depth % 2];
      const int64_t values = int64_t(kind.widths[call_.depth]) * t.out.plane;
      if (t.staged) last = std::max(last, values);
      one += double(values) * kind.group / Tiling::kThreads * kCostOfValue;
      for (int i = 0; i < 2; ++i) buffers[i] = std::max(buffers[i], size[i] * kind.group);
      weights = std::max(weights, own * kind.group);
      cost += double(ceil_div(list_.units[k], kind.group)) * one;
    }
    for (int64_t& buffer : buffers) buffer = (buffer + 3) / 4 * 4;
    if (weights + buffers[0] + buffers[1] > floats) return false;
    t.weights = int(weights);
    t.first = int(buffers[0]);
    t.second = int(buffers[1]);
    const double tiles = double(t.tiles_y) * t.tiles_x * t.image_groups;
    const double turns = tiles * double(list_.items) / (kProcessors * Tiling::kBlocks);
    cost *= tiles * std::max(1.0, 1 / turns);  // too few blocks leave processors idle
    return true;
  }

  // Floats of a unit's weights and of its two buffers, and what a block costs, of a kind.
  void fixed(const Kind& kind, const Tiling& t, int64_t& weights, int64_t (&size)[2],
             double& cost) const {
    const short* c = kind.widths;
    size[0] = int64_t(c[0]) * t.in.plane;
    size[1] = int64_t(c[1]) * t.hidden.plane;
    const Patches* patches[2] = {&t.first_level, &t.second_level};
    for (int l = 0; l < 2; ++l) {
      weights += fixed_floats(c[l], c[l + 1]);
      const int at_once = fixed_channels(c[l + 1]);
      const int64_t all = int64_t(kind.group) * (c[l + 1] / at_once) * patches[l]->count();
      cost += double(ceil_div(all, Tiling::kThreads)) * c[l] * at_once * 9 * Patches::kRows *
              Patches::kColumns;
    }
    cost += double(size[0]) * kind.group / Tiling::kThreads * kCostOfValue;
  }

  void general(const Kind& kind, const Tiling& t, int64_t& weights, int64_t (&size)[2],
               double& cost) const {
    for (int l = 0; l < call_.depth; ++l) {
      weights += round_up(int(kind.block(l)), 4);
      const int stride = l == 0 ? call_.stride : 1;
      const Region out = needed(kind, call_.depth, call_.dilation, l, {0, 0, t.h, t.w});
      const Region in = input_of(kind, call_.dilation, stride, out);
      const int64_t values = int64_t(kind.widths[l]) * t.images * in.h * in.w;
      // Rows that a thread computes in vain read past a buffer.
      size[l % 2] = std::max(size[l % 2], values + 8 * stride * in.w);
      if (l == 0) cost += double(values) * kind.group / Tiling::kThreads * kCostOfValue;
      const int channels = std::min<int>(kind.widths[l + 1], kChannels),
                rows = strip_rows(channels);
      const int64_t all = int64_t(t.images) * ceil_div(out.h, rows) * out.w;
      cost += double(kind.group) * double(ceil_div(all, Tiling::kThreads)) * double(kind.block(l)) *
              rows;
    }
  }

  const WorkList& list_;
  const UnitForwardCall& call_;
  const bool staged_;
};

UnitPlan make_plan(const Layer& layer, const UnitForwardCall& call, int element_bytes,
                   bool staged) {
  const bool fixed = call.depth == 2 && call.dilation == 1 && call.stride <= 2;
  // Channels next to each other: a block takes as many units as fill sectors, fewer where their
  // tiles would be too small.
  int span = call.y.stride_c == 1 ? kSectorBytes / element_bytes : 0;
  for (;; span /= 2) {
    UnitPlan plan;
    plan.list = work_list(layer.stack, 0, call.depth, [&](Kind& kind, int longest_run) {
      const int narrow = std::min(kind.widths[0], kind.widths[call.depth]);
      kind.group = short(std::clamp(span / narrow, 1, std::min(kMostGroup, longest_run)));
      kind.code = short(fixed ? fixed_code(kind) : -1);
    });
    const Planner planner(plan.list, call, staged);
    plan.fits = planner.choose(kSharedBytes, plan.tiling);
    if (!plan.fits && span == 0) plan.fits = planner.choose(kMostSharedBytes, plan.tiling);
    if (plan.fits || span == 0) return plan;
  }
}

// Everything that a plan depends on.
using Key = std::array<int64_t, 11>;

}  // namespace

std::shared_ptr<const UnitPlan> unit_plan(const Layer& layer, const UnitForwardCall& call,
                                          int element_bytes, bool staged) {
  static BoundedCache<Key, UnitPlan, 128> plans;
  const Key key{layer.number, call.x.n,    call.x.h,      call.x.w,      call.y.h,
                call.y.w,     call.stride, call.dilation, element_bytes, call.y.stride_c == 1,
                staged};
  return plans.get(key, [&] { return make_plan(layer, call, element_bytes, staged); });
}

}  // namespace bunit::gpu
