#include "forward_plan.h"

#include <algorithm>

namespace bunit {
namespace {

// What a step's buffers may take of the first-level cache (32 to 48 KiB), beside weights.
constexpr int64_t kCacheBytes = 36 * 1024;
// The same with Winograd's tiles and squares: of the second. (In squares steps that keep to the
// first one took 1.06 of the time, 16-16-16 at 28x28.)
constexpr int64_t kTilesCacheBytes = 192 * 1024;
constexpr int64_t kSquaresCacheBytes = 256 * 1024;
constexpr int64_t kStageBytes = 256 * 1024;
constexpr int64_t kItems = 32;
constexpr int64_t kSegmentPixels = 256;  // not worth splitting below
constexpr int64_t kManyItems = 256;      // a thread
constexpr int64_t kMostTogether = 8;     // units
// Pairs of channels up to which inference is quicker in pairs of rows than in tiles, where squares
// do not serve, which are quicker than both (10.5, 11.8 and 19.7 ms of these). On a Zen 4,
// two threads, in ms (tiles / pairs): 16-16-16 at 28x28 (N=32) 14.2/13.5, at 16x16
// (N=128) 18.8/15.1, 32-32-32 at 28x28 23.5/26.5; a training step 16-16-16 at 28x28 53.5/54.9.
constexpr int64_t kMostPaired = 256;

// What pack_winograd and pack_pairs take: a 3x3 level's weight by output, input and tap.
template <class T>
auto tap_of(const T* weights, const Level& level) {
  return [weights, c_in = level.c_in](int64_t o, int64_t i, int tap) {
    return weights[(o * c_in + i) * 9 + tap];
  };
}

}  // namespace

ForwardPlan::ForwardPlan(const Stack& stack, const Image& x, const std::vector<Tensor>& weights,
                         const std::vector<Tensor>& biases, const ConvOptions& options)
    : stack_(stack), options_(options), dtype_(x.dtype) {
  for (const Part& part : parts_of(stack, x, options.stride, options.pass)) {
    PartPlan& plan = plans_.emplace_back();
    plan.part = part;
    plan.kinds.resize(size_t(stack.kinds));
    plan.units.resize(stack.units.size());
    std::vector<bool> made(size_t(stack.kinds));
    for (size_t u = 0; u < plan.units.size(); ++u) {
      const Unit& unit = stack.units[u];
      if (!made[size_t(unit.kind)]) make_kind(unit, x, plan);
      made[size_t(unit.kind)] = true;
      plan.units[u] = {};
      plan.units[u].kind = &plan.kinds[size_t(unit.kind)];
      plan.units[u].in_channel = unit.channels[0];
      plan.units[u].out_channel = unit.channels[stack.depth];
    }
  }
  if (dtype_ == Scalar::float64) {
    pack<double>(weights, biases);
  } else {
    pack<float>(weights, biases);
  }
}

template <class T>
void ForwardPlan::pack(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  int64_t size = 0;
  for (int l = 0; l < stack_.depth; ++l) {
    if (!biases.empty()) size += stack_.channels[l + 1];
    for (size_t u = 0; u < stack_.units.size(); ++u) {
      const Kind& kind = *plans_[0].units[u].kind;
      const Level& level = kind.levels[l];
      size += level.winograd     ? winograd_weights(level.c_in, level.c_out)
              : kind.squares > 0 ? square_weights(level.c_in, level.c_out)
              : level.pairs      ? pair_weights(level.c_in, level.c_out)
                                 : int64_t(level.taps) * level.c_out;
    }
  }
  packed_.resize(size_t(size * int64_t(sizeof(T)) + 7) / 8);
  T* out = reinterpret_cast<T*>(packed_.data());
  for (int l = 0; l < stack_.depth; ++l) {
    const Values<T> weight(weights[size_t(l)]);
    std::vector<size_t> winograd;
    for (size_t u = 0; u < stack_.units.size(); ++u) {
      for (PartPlan& plan : plans_) plan.units[u].weights[l] = out;
      const Kind& kind = *plans_[0].units[u].kind;
      const Level& level = kind.levels[l];
      if (level.winograd) {
        winograd.push_back(u);
        out += winograd_weights(level.c_in, level.c_out);
      } else if (kind.squares > 0) {
        const T* own = &weight[stack_.units[u].weights[l]];
        out = pack_squares(level.c_in, level.c_out, tap_of(own, level), out);
      } else if (level.pairs) {
        const T* own = &weight[stack_.units[u].weights[l]];
        out = pack_pairs(level.c_in, level.c_out, tap_of(own, level), out);
      } else {
        out = pack_weights(weight, stack_.units[u], l, out);
      }
    }
    for_each_item(int64_t(winograd.size()), [&](int64_t item) {
      const size_t u = winograd[size_t(item)];
      const PackedUnit& unit = plans_[0].units[u];
      const Level& level = unit.kind->levels[l];
      const T* own = &weight[stack_.units[u].weights[l]];
      pack_winograd(level.c_in, level.c_out, tap_of(own, level),
                    static_cast<T*>(const_cast<void*>(unit.weights[l])));
    });
    if (biases.empty()) continue;
    const Values<T> bias(biases[size_t(l)]);
    for (size_t u = 0; u < stack_.units.size(); ++u) {
      for (PartPlan& plan : plans_) {
        plan.units[u].biases[l] = out + stack_.units[u].channels[l + 1];
      }
    }
    for (int64_t c = 0; c < stack_.channels[l + 1]; ++c) *out++ = bias[c];
  }
}

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
    level.out_h = conv_size(h, unit.kernel, unit.pad, stride, options_.dilation);
    level.out_w = conv_size(w, unit.kernel, unit.pad, stride, options_.dilation);
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
    STD_TORCH_CHECK(level.out_h >= 1 && level.out_w >= 1, "level ", l + 1, " gets ", h, "x", w,
                    " pixels, too few for its kernel of ", unit.kernel);
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

// What planes in place of interleaved channels take.
int64_t ForwardPlan::stage_bytes(const ForwardCall& call, int64_t group, int64_t segments) const {
  const int64_t rows = ((call.y.h + 1) / 2 + segments - 1) / segments * 2;
  const int64_t in_rows =
      std::min(call.x.h, (rows + reach_ + 1 + 2 * stack_.depth) * options_.stride);
  const int64_t in_plane = in_rows * call.x.w * call.lanes + kPlaneGap;
  const int64_t out_plane = rows * call.y.w * call.lanes + kPlaneGap;
  const int64_t in = group_channels(stack_, 0, group) * in_plane + 64;
  const int64_t out = group_channels(stack_, stack_.depth, group) * out_plane + 64;
  const int64_t elements = (is_interleaved(call.x) ? in : 0) + (is_interleaved(call.y) ? out : 0) +
                           (is_interleaved(call.residual) ? out : 0);
  return elements * compute_size(dtype_);
}

int64_t ForwardPlan::group(const Image& x, bool interleaved) const {
  return units_per_item(interleaved || is_interleaved(x), x.dtype,
                        std::min(stack_.channels[0], stack_.channels[stack_.depth]),
                        stack_.all().last);
}

void ForwardPlan::run(const UnitRange& units, const Image& x, const Image& y, const Image& residual,
                      const Norm& in_norm, Activation in_activation,
                      std::vector<Moments>* moments) const {
  if (y.n == 0) return;
  ForwardCall call{};
  call.depth = stack_.depth;
  call.stride = int(options_.stride);
  call.hidden = options_.hidden;
  call.out = options_.out;
  call.after_residual = options_.after_residual;
  call.in_norm = in_norm;
  call.in_activation = in_activation;
  call.around = (options_.out == Activation::identity || options_.out == Activation::relu) &&
                goes_around_caches(y, y.w);
  // (Copied once they are whole: 8-8-8 at 28x28 took 0.92 of the time. A few lines at a time beside
  // the next unit's arithmetic was no quicker.)
  call.around_whole =
      !call.around && kernels().vector_bytes == kLineBytes && goes_around_caches(y, kLineBytes);
  std::vector<Moments> parts;
  for (const PartPlan& plan : plans_) {
    call.x = images_of(x, plan.part.first, plan.part.count);
    call.y = images_of(y, plan.part.first, plan.part.count);
    call.residual = images_of(residual, plan.part.first, plan.part.count);
    call.lanes = plan.part.lanes;
    call.units = plan.units.data();
    if (!y.data) call.y.n = plan.part.count;
    run_part(units, plan, call, moments ? &parts : nullptr);
  }
  if (moments) *moments = merge_moments(parts, y.c);
}

// Appends the moments of its items to `moments`.
void ForwardPlan::run_part(const UnitRange& units, const PartPlan& plan, ForwardCall call,
                           std::vector<Moments>* moments) const {
  const int64_t group = this->group(call.x, is_interleaved(call.y));
  const int64_t groups = (units.last - units.first + group - 1) / group;
  const int64_t items = call.y.n / call.lanes;
  // Moments must not depend on the number of threads; outputs never do.
  const int64_t wanted = moments ? kItems : num_threads() == 1 ? 1 : 4 * num_threads();
  const int64_t tiles = (call.y.h + 1) / 2;
  call.segments =
      segments_for(items * groups, wanted, tiles, call.y.h * call.y.w * call.lanes, kSegmentPixels);
  const int64_t most = stage_bytes(call, group, 1) / kStageBytes;
  call.segments = std::clamp<int64_t>(most, call.segments, tiles);
  if (moments) {
    const size_t before = moments->size();
    moments->resize(before + size_t(items * call.segments * call.y.c));
    call.moments = moments->data() + before;
  }
  const auto forward = kernels().forward[compute_index(dtype_)];
  const int64_t staged = stage_bytes(call, group, call.segments);
  const int64_t bytes = plan.scratch_bytes + staged;
  // Of many items some at once, unless each needs memory of its own: a call for each unit was 0.04
  // of the time of 2-4-2 at 16x16.
  const int64_t enough = items * call.segments * groups / (kManyItems * num_threads());
  const int64_t together = staged == 0 ? std::clamp<int64_t>(enough, 1, kMostTogether) : group;
  const int64_t ranges = (units.last - units.first + together - 1) / together;
  for_each_item(items * call.segments * ranges, [&](int64_t item) {
    const int64_t first = units.first + item % ranges * together;
    const int64_t outer = item / ranges;
    forward(call, outer / call.segments, first, std::min(first + together, units.last),
            outer % call.segments, scratch(bytes));
  });
}

}  // namespace bunit
