#include "forward_plan.h"

#include <algorithm>

namespace bunit {
namespace {

constexpr int64_t kStageBytes = 256 * 1024;
constexpr int64_t kItems = 32;
constexpr int64_t kManyItems = 256;   // a thread
constexpr int64_t kMostTogether = 8;  // units

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
    : stack_(stack),
      options_(options),
      dtype_(x.dtype),
      apart_(make_group(false)),
      interleaved_(make_group(true)) {
  for (const Part& part : parts_of(stack, x, options.stride, options.pass)) {
    PartPlan& plan = plans_.emplace_back();
    plan.part = part;
    plan.kinds.resize(size_t(stack.kinds()));
    plan.units.resize(stack.units.size());
    std::vector<bool> made(size_t(stack.kinds()));
    for (size_t u = 0; u < plan.units.size(); ++u) {
      const Unit& unit = stack.units[u];
      if (!made[size_t(unit.kind)]) make_kind(unit, x, plan);
      made[size_t(unit.kind)] = true;
      plan.units[u] = {};
      plan.units[u].kind = &plan.kinds[size_t(unit.kind)];
      plan.units[u].in_channel = unit.channels[0];
      plan.units[u].out = stack.out_channels(unit, stack.depth - 1);
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

// What planes in place of interleaved channels take.
int64_t ForwardPlan::stage_bytes(const ForwardCall& call, const Group& group,
                                 int64_t segments) const {
  const int64_t rows = ((call.y.h + 1) / 2 + segments - 1) / segments * 2;
  const int64_t in_rows =
      std::min(call.x.h, (rows + reach_ + 1 + 2 * stack_.depth) * options_.stride);
  const int64_t in_plane = in_rows * call.x.w * call.lanes + kPlaneGap;
  const int64_t out_plane = rows * call.y.w * call.lanes + kPlaneGap;
  const int64_t in = group.ins * in_plane + 64;
  const int64_t out = group.outs * out_plane + 64;
  const int64_t elements = (call.x.is_interleaved() ? in : 0) +
                           (call.y.is_interleaved() ? out : 0) +
                           (call.residual.is_interleaved() ? out : 0);
  return elements * compute_size(dtype_);
}

ForwardPlan::Group ForwardPlan::make_group(bool interleaved) const {
  const int64_t count = stack_.all().last;  // of a shuffled output as many channels lie together
  const int64_t outs = stack_.places.empty() ? stack_.channels[stack_.depth] : count;
  const int64_t units =
      units_per_item(interleaved, dtype_, std::min(stack_.channels[0], outs), count);
  return {units, group_channels(stack_, 0, units), group_channels(stack_, stack_.depth, units)};
}

const ForwardPlan::Group& ForwardPlan::group_of(const Image& x, bool interleaved) const {
  return interleaved || x.is_interleaved() ? interleaved_ : apart_;
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
  const Group& group = group_of(call.x, call.y.is_interleaved());
  const int64_t groups = (units.last - units.first + group.units - 1) / group.units;
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
  check_scratch(bytes);
  // Of many items some at once, unless each needs memory of its own: a call for each unit was 0.04
  // of the time of 2-4-2 at 16x16.
  const int64_t enough = items * call.segments * groups / (kManyItems * num_threads());
  const int64_t together =
      staged == 0 ? std::clamp<int64_t>(enough, 1, kMostTogether) : group.units;
  const int64_t ranges = (units.last - units.first + together - 1) / together;
  for_each_item(items * call.segments * ranges, [&](int64_t item) {
    const int64_t first = units.first + item % ranges * together;
    const int64_t outer = item / ranges;
    forward(call, outer / call.segments, first, std::min(first + together, units.last),
            outer % call.segments, scratch(bytes));
  });
}

}  // namespace bunit
