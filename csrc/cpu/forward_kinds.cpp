// What a forward plan settles for each kind of unit: by which kernel a level is made, how many rows
// at a time, and the sizes of the buffers for it.
#include <algorithm>

#include "conv_size.h"
#include "forward_plan.h"

namespace bunit {
namespace {

// What a step's buffers may take of the first-level cache (32 to 48 KiB), beside weights.
constexpr int64_t kCacheBytes = 36 * 1024;
// The same with Winograd's tiles and squares: of the second.
constexpr int64_t kTilesCacheBytes = 192 * 1024;
constexpr int64_t kSquaresCacheBytes = 256 * 1024;
// Pairs of channels up to which inference is quicker in pairs of rows than in tiles, where squares
// do not serve, which are quicker than both (10.5, 11.8 and 19.7 ms of these). On a Zen 4,
// two threads, in ms (tiles / pairs): 16-16-16 at 28x28 (N=32) 14.2/13.5, at 16x16
// (N=128) 18.8/15.1, 32-32-32 at 28x28 23.5/26.5; a training step 16-16-16 at 28x28 53.5/54.9.
constexpr int64_t kMostPaired = 256;

}  // namespace

void ForwardPlan::make_kind(const Unit& unit, const Image& x, PartPlan& plan) {
  Kind& kind = plan.kinds[size_t(unit.kind)];
  kind = {};
  int64_t h = x.h, w = x.w;
  const int64_t span = options_.dilation * (unit.kernel - 1);
  kind.squares = squares_of_row(unit, x);
  for (int l = 0; l < stack_.depth; ++l) {
    Level& level = kind.levels[l];
    const int64_t stride = l == 0 ? options_.stride : 1;
    level.c_in = unit.widths[l];
    level.c_out = unit.widths[l + 1];
    level.taps = level.c_in * unit.kernel * unit.kernel;
    level.pad = unit.pad;
    level.reach = int(span / stride);
    level.phases = unit.kernel == 1 ? 1 : int(stride);
    level.plain = unit.kernel == 3 && stride == 1 && options_.dilation == 1;
    level.out_h = conv_size<int64_t>(h, unit.kernel, unit.pad, stride, options_.dilation);
    level.out_w = conv_size<int64_t>(w, unit.kernel, unit.pad, stride, options_.dilation);
    const bool fills_rows = kind.squares == 0 && kernels().takes_rows[compute_index(dtype_)](
                                                     level.plain, level.c_out, level.out_w);
    // All parts of the batch share weights.
    const bool pairs =
        fills_rows && plans_.front().part.lanes == 1 && level.c_out >= kernels().least_paired;
    const bool narrow = int64_t(level.c_in) * level.c_out <= kMostPaired;
    level.winograd = level.plain && kind.squares == 0 &&
                     !(pairs && narrow && options_.pass == Pass::forward) &&
                     takes_winograd(level.c_in, level.c_out, x.h * x.w, options_.pass);
    level.by_rows = fills_rows && plan.part.lanes == 1 && !level.winograd;
    level.pairs = level.by_rows && pairs;
    // At stride 1 the zeros between two rows serve both as padding.
    const int64_t row = stride == 1 ? w + unit.pad : level.out_w + level.reach;
    kind.row = std::max({kind.row, row, level.out_w});
    h = level.out_h;
    w = level.out_w;
  }
  kind.row *= plan.part.lanes;
  const int64_t vector = kernels().vector_bytes / compute_size(dtype_);
  for (const Level& level : kind.levels) {
    if (level.winograd) kind.row = round_up(kind.row, vector);
  }
  out_h_ = h;
  int64_t reach = 0;
  for (int l = 0; l < stack_.depth; ++l) reach += kind.levels[l].reach;
  reach_ = std::max(reach_, reach);
  out_w_ = w;
  if (kind.squares > 0) {
    set_squares_step(kind);
  } else {
    set_step(kind, x.w, plan.part.lanes);
  }
  for (int l = 0; l < stack_.depth && kind.squares == 0; ++l) {
    Level& level = kind.levels[l];
    offsets_.push_back(tap_offsets(unit, l, l == 0 ? options_.stride : 1, options_.dilation,
                                   level.phases, level.plane, kind.row, plan.part.lanes));
    level.offsets = offsets_.back().data();
  }
  plan.scratch_bytes = std::max(plan.scratch_bytes, kind.scratch * compute_size(dtype_));
}

// Squares in a row of planes of a unit that is worked on in squares, or 0.
int64_t ForwardPlan::squares_of_row(const Unit& unit, const Image& x) const {
  // All parts of the batch share weights.
  const bool takes = options_.pass == Pass::forward && plans_.front().part.lanes == 1 &&
                     unit.kernel == 3 && unit.pad == 1 && options_.stride == 1 &&
                     options_.dilation == 1;
  return takes ? kernels().squares_of_row[compute_index(dtype_)](x.w) : 0;
}

// As many rows at a time as the cache holds, in even steps; a level's planes hold those that it
// makes of its own, and two more above and below, for each level behind it.
void ForwardPlan::set_squares_step(Kind& kind) const {
  const int64_t vector = kernels().vector_bytes / compute_size(dtype_);
  const int64_t depth = stack_.depth, row = 2 * kind.squares;
  for (int64_t t = 0; t < vector; ++t) {
    const int64_t x = t % kind.squares;
    kind.has_left = uint16_t(kind.has_left | (x > 0) << t);
    kind.has_right = uint16_t(kind.has_right | (2 * x + 2 < out_w_) << t);
  }
  int64_t per_row = 0, fixed = 0;
  for (int64_t l = 0; l < depth; ++l) {
    per_row += kind.levels[l].c_in;
    fixed += kind.levels[l].c_in * 4 * (depth - l);
  }
  const int64_t rows_in_cache = kSquaresCacheBytes / (row * compute_size(dtype_));
  const int64_t least = std::max<int64_t>(2, kSegmentPixels / row);
  const int64_t most = std::max(least, (rows_in_cache - fixed) / per_row);
  const int64_t steps = (out_h_ + most - 1) / most;
  kind.step = round_up((out_h_ + steps - 1) / steps, 2);
  kind.out_plane = padded_plane(kind.step * kind.row + 2 * vector, vector);
  kind.scratch = 3 * kind.row + vector + (1 + kPlanesApart) * vector +
                 kind.levels[depth - 1].c_out * kind.out_plane;
  for (int64_t l = 0; l < depth; ++l) {
    Level& level = kind.levels[l];
    level.rows = kind.step + 4 * (depth - l);
    // One row of squares before, two behind, and the rest of a vector.
    const int64_t quarter = round_up((level.rows / 2 + 3) * kind.squares, vector);
    level.plane = 4 * (quarter + (4 * quarter % 1024 == 0 ? vector : 0));
    kind.scratch += (1 + kPlanesApart) * vector + level.c_in * level.plane;
  }
}

// As many rows at a time as the cache holds, in even steps.
void ForwardPlan::set_step(Kind& kind, int64_t in_w, int64_t lanes) const {
  const int64_t vector = kernels().vector_bytes / compute_size(dtype_);
  const int64_t depth = stack_.depth;
  // Where all levels are made by rows, those of the first read the image and those of the last
  // write the output in their place (mostly).
  bool in_place = kernels().loads_lanes && kind.levels[0].pad == 1 && depth > 1;
  for (int64_t l = 0; l < depth; ++l) in_place = in_place && kind.levels[l].by_rows;
  int64_t per_row = in_place ? 0 : kind.levels[depth - 1].c_out, fixed = 0, extra = 0;
  bool tiles = false, pairs = false;
  for (int64_t l = depth - 1; l >= 0; --l) {
    const Level& level = kind.levels[l];
    const int64_t planes =
        l == 0 && in_place ? 0 : int64_t(level.c_in) * level.phases * level.phases;
    extra += level.reach;
    per_row += planes;
    fixed += planes * extra;
    pairs = pairs || level.pairs;
    if (!level.winograd) continue;
    tiles = true;
    kind.tiles_size = std::max(kind.tiles_size, winograd_memory(level.c_in, vector));
  }
  const int64_t rows_in_cache =
      (tiles ? kTilesCacheBytes : kCacheBytes) / (kind.row * compute_size(dtype_));
  const int64_t least = tiles ? 2 : (kSegmentPixels * lanes + kind.row - 1) / kind.row;
  const int64_t most = std::max(least, (rows_in_cache - fixed) / per_row);
  const int64_t steps = (out_h_ + most - 1) / most;
  kind.step = (out_h_ + steps - 1) / steps;
  if (tiles || pairs) kind.step = round_up(kind.step, 2);

  int64_t rows = kind.step;
  const int64_t slack =
      (tiles ? 5 : 2) * vector + (kind.levels[0].pad + kind.levels[0].reach) * lanes;
  kind.out_plane = padded_plane(rows * kind.row + slack, vector);
  kind.scratch = kind.row + (2 + kPlanesApart) * vector +
                 kind.levels[stack_.depth - 1].c_out * kind.out_plane + kind.tiles_size;
  for (int l = stack_.depth - 1; l >= 0; --l) {
    Level& level = kind.levels[l];
    rows += level.reach;
    // To whole tiles or pairs above and below, and half a one behind.
    if (tiles || pairs) rows += 3;
    level.rows = rows;
    level.plane = padded_plane(rows * kind.row + slack, vector);
    kind.scratch +=
        kPlanesApart * vector + int64_t(level.c_in) * level.phases * level.phases * level.plane;
  }
  if (lanes > 1) {  // staging
    const Level &head = kind.levels[0], &tail = kind.levels[stack_.depth - 1];
    kind.scratch += std::max(head.c_in * (head.rows * options_.stride * in_w * lanes + kPlaneGap),
                             tail.c_out * (kind.step * tail.out_w * lanes + kPlaneGap));
  }
}

}  // namespace bunit
