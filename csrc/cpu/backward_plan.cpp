#include "backward_plan.h"

#include <algorithm>

namespace bunit {
namespace {

constexpr int64_t kStageBytes = 512 * 1024;       // planes of interleaved channels
constexpr int64_t kTilesCacheBytes = 128 * 1024;  // of transformed tiles
constexpr int64_t kCacheBytes = 256 * 1024;       // a segment's buffers: first and second level
// Work is split alike whatever the number of threads, so that sums come out the same: into about
// this many items, blocks of images first.
constexpr int64_t kItems = 64;

}  // namespace

BackwardPlan::BackwardPlan(const Stack& stack, int level, const Image& x, const Image& grad,
                           const Tensor* weight, int64_t stride, int64_t dilation, Pass pass)
    : stack_(stack), level_(level), stride_(stride), x_(x), grad_(grad) {
  const int64_t count = int64_t(stack.units.size());
  group_ = units_per_item(x.is_interleaved() || grad.is_interleaved(), x.dtype,
                          std::min(x.c, stack.places.empty() ? grad.c : count), count);
  group_in_ = group_channels(stack, level, group_);
  group_out_ = group_channels(stack, level + 1, group_);
  for (const Unit& unit : stack.units) {
    reach_ = std::max(reach_, dilation * (unit.kernel - 1) / stride);
    pad_ = std::max<int64_t>(pad_, unit.pad);
  }
  for (const Part& part : parts_of(stack, x, stride, pass)) {
    PartPlan& plan = plans_.emplace_back();
    plan.part = part;
    split(plan);
    plan.kinds.resize(size_t(stack.kinds()));
    std::vector<bool> made(plan.kinds.size());
    for (const Unit& unit : stack.units) {
      if (!made[size_t(unit.kind)]) make_kind(unit, dilation, pass, plan);
      made[size_t(unit.kind)] = true;
      BackwardUnit out{};
      out.kind = &plan.kinds[size_t(unit.kind)];
      out.in_channel = unit.channels[level];
      out.out = stack.out_channels(unit, level);
      out.weight = unit.weights[level];
      plan.units.push_back(out);
    }
    if (!weight) continue;
    if (x.dtype == Scalar::float64) {
      pack<double>(*weight, dilation, plan);
    } else {
      pack<float>(*weight, dilation, plan);
    }
  }
}

// Into blocks of images, and segments of their rows.
void BackwardPlan::split(PartPlan& plan) const {
  const int64_t lanes = plan.part.lanes;
  const int64_t items = plan.part.count / lanes;
  const int64_t count = int64_t(stack_.units.size());
  const int64_t blocks =
      std::clamp<int64_t>((kItems + count - 1) / count, 1, std::max<int64_t>(1, items));
  plan.block = std::max<int64_t>(1, (items + blocks - 1) / blocks);
  plan.blocks = (items + plan.block - 1) / plan.block;

  int64_t widest = 0;
  for (const Unit& unit : stack_.units) {
    const int64_t planes = unit.widths[level_ + 1] + 2 * unit.widths[level_];
    widest = std::max(widest, planes * (grad_.w + 2 * unit.pad) * lanes);
  }
  const int64_t in_cache = std::max<int64_t>(4, kCacheBytes / (widest * compute_size(x_.dtype)));
  const int64_t groups = std::max<int64_t>(1, plan.blocks * count);
  const int64_t parallel = (kItems + groups - 1) / groups;
  const int64_t worth = std::max<int64_t>(1, grad_.h * grad_.w * lanes / 256);
  plan.segments = std::max((grad_.h + in_cache - 1) / in_cache, std::min(parallel, worth));
  plan.segments = std::max(plan.segments, stage_bytes(lanes, 1) / kStageBytes);
  plan.segments = std::clamp<int64_t>(plan.segments, 1, grad_.h);
  plan.rows = (grad_.h + plan.segments - 1) / plan.segments;
}

// What planes in place of images of other layouts take: gradient, pre-norm output, input and its
// gradient, of which some may not be needed.
int64_t BackwardPlan::stage_bytes(int64_t lanes, int64_t segments) const {
  const int64_t rows = (grad_.h + segments - 1) / segments;
  // The last segment may own input rows below those of its output rows.
  const int64_t below = std::max<int64_t>(0, (x_.h - 1 + pad_) / stride_ + 1 - grad_.h);
  const int64_t in_rows = std::min(x_.h, (rows + below + reach_ + 2) * stride_ + pad_);
  const int64_t out_rows = std::min(grad_.h, rows + below + 2 * reach_);
  const int64_t in = group_in_ * (in_rows * x_.w * lanes + kPlaneGap);
  const int64_t out = group_out_ * (out_rows * grad_.w * lanes + kPlaneGap);
  return (2 * in + 2 * out + 4 * 64) * compute_size(x_.dtype);
}

void BackwardPlan::make_kind(const Unit& unit, int64_t dilation, Pass pass, PartPlan& plan) {
  BackwardKind& kind = plan.kinds[size_t(unit.kind)];
  kind = {};
  const int64_t per_pixel = plan.part.lanes;
  const int64_t span = dilation * (unit.kernel - 1);
  kind.c_in = unit.widths[level_];
  kind.c_out = unit.widths[level_ + 1];
  kind.taps = kind.c_in * unit.kernel * unit.kernel;
  kind.pad = unit.pad;
  kind.reach = int(span / stride_);
  kind.phases = unit.kernel == 1 ? 1 : int(stride_);
  kind.plain = unit.kernel == 3 && stride_ == 1 && dilation == 1;
  const int64_t in_columns = (x_.w - 1 + unit.pad) / stride_ + 1;  // of a phase, that are pixels
  const int64_t in_rows = (x_.h - 1 + unit.pad) / stride_ + 1;
  kind.row = std::max(grad_.w + kind.reach, in_columns) * per_pixel;
  const int64_t lanes = kernels().vector_bytes / compute_size(x_.dtype);
  kind.winograd = kind.plain && takes_winograd(kind.c_out, kind.c_in, x_.h * x_.w, pass);
  if (kind.winograd) {
    kind.row = round_up(kind.row, lanes);
    const int64_t channels = kind.c_in + kind.c_out, in_row = (grad_.w + 1) / 2;
    kind.tiles_at_once = kTilesCacheBytes / (compute_size(x_.dtype) * 2 * channels * lanes);
    const int64_t blocks = round_up(kind.c_in, kChannelBlock) * round_up(kind.c_out, kChannelBlock);
    kind.tiles_size = std::max(
        winograd_memory(kind.c_out, lanes),
        4 * channels * lanes * std::max(kind.tiles_at_once, in_row) + 16 * blocks + 2 * lanes);
  }

  // Fewer output channels would be tiles of too few sums to hide what each waits for the one
  // before. (32 units 16-1, N=16, 28x28: 5.3 ms by pixels, 2.5 by planes; 16-4: 5.0 and 5.6.)
  kind.wide = !kind.winograd && per_pixel == 1 && kind.phases == 1 && kind.c_out >= kChannelBlock &&
              fills_vectors(kind.c_in, lanes);
  const bool takes_rows =
      per_pixel == 1 && !kind.winograd &&
      kernels().takes_rows[compute_index(x_.dtype)](kind.plain, kind.c_in, x_.w);
  kind.pairs = takes_rows && kind.c_in >= kernels().least_paired;
  kind.by_rows = takes_rows && kernels().loads_lanes && !kind.wide && kind.pad == 1 &&
                 grad_.h >= 2 * plan.segments;
  if (kind.by_rows) {
    kind.row = x_.w;
    plan.sums_size = std::max(plan.sums_size, int64_t(kind.taps) * kind.c_out * lanes);
  }

  // The last segment may own input rows below those of its output rows.
  const int64_t below = std::max<int64_t>(0, in_rows - grad_.h);
  const int64_t slack =
      kind.row + (kind.winograd ? 3 : 2) * lanes + (kind.reach + unit.pad) * per_pixel;
  kind.grad_plane = padded_plane((plan.rows + below + kind.reach) * kind.row + slack, lanes);
  kind.x_plane = padded_plane((plan.rows + kind.reach) * kind.row + slack, lanes);
  kind.out_plane = padded_plane((plan.rows + below) * kind.row + slack, lanes);
  const int64_t spare = std::max({kind.row, x_.w * per_pixel, grad_.w * per_pixel}) + lanes;
  int64_t elements =
      kind.tiles_size + 2 * spare + 3 * kPlanesApart * lanes + kind.c_out * kind.grad_plane +
      int64_t(kind.c_in) * kind.phases * kind.phases * kind.x_plane + kind.c_in * kind.out_plane;
  if (kind.wide) {  // both as pixels of whole vectors of channels, aligned; the sums at the end
    elements += round_up(kind.c_in, lanes) * kind.x_plane +
                round_up(kind.c_out, lanes) * kind.grad_plane + lanes;
    elements = std::max(elements, int64_t(kind.taps) * kind.c_out);
  }
  plan.scratch_bytes = std::max(plan.scratch_bytes, elements * compute_size(x_.dtype));

  offsets_.push_back(
      tap_offsets(unit, level_, stride_, dilation, kind.phases, kind.x_plane, kind.row, per_pixel));
  kind.x_offsets = offsets_.back().data();
  if (per_pixel > 1 || kind.by_rows) return;

  // Masks of 4 or 8 bytes an element, kept as 8-byte words.
  const int64_t size = plan.rows * kind.row + 2 * lanes;
  std::vector<int64_t>& mask = offsets_.emplace_back(size_t(size), 0);
  for (int64_t p = 0; p < plan.rows * kind.row; ++p) {
    const bool valid = p % kind.row < grad_.w;
    if (x_.dtype == Scalar::float64) {
      mask[size_t(p)] = valid ? -1 : 0;
    } else {
      reinterpret_cast<int32_t*>(mask.data())[p] = valid ? -1 : 0;
    }
  }
  kind.mask = mask.data();
}

// Each phase of input pixels is a convolution of the output's gradient with the taps that reach it.
template <class T>
void BackwardPlan::pack(const Tensor& weight, int64_t dilation, PartPlan& plan) {
  const Values<T> values(weight);
  int64_t size = 0;
  for (const BackwardUnit& unit : plan.units) {
    const BackwardKind& kind = *unit.kind;
    size += kind.winograd ? winograd_weights(kind.c_out, kind.c_in)
            : kind.pairs  ? pair_weights(kind.c_out, kind.c_in)
                          : kind.c_out * kind.taps;
  }
  plan.packed.resize(size_t(size * int64_t(sizeof(T)) + 7) / 8);
  T* out = reinterpret_cast<T*>(plan.packed.data());
  std::vector<bool> made(plan.kinds.size());
  for (size_t u = 0; u < plan.units.size(); ++u) {
    const Unit& unit = stack_.units[u];
    BackwardKind& kind = plan.kinds[size_t(unit.kind)];
    const bool first = !made[size_t(unit.kind)];
    made[size_t(unit.kind)] = true;
    std::vector<int64_t> counts, offsets;
    plan.units[u].weights = out;
    for (int64_t phase = 0; phase < stride_ * stride_; ++phase) {
      std::vector<int64_t> taps;  // output channel and tap, as an index into [c_out][k * k]
      const int64_t area = int64_t(unit.kernel) * unit.kernel;
      for (int64_t turned = 0; turned < kind.c_out * area; ++turned) {
        // Kernels are gone through from their end, so that offsets rise: a convolution like others.
        const int64_t i = turned / area * area + (area - 1 - turned % area);
        const int64_t y = i % area / unit.kernel * dilation, x = i % unit.kernel * dilation;
        if (y % stride_ != phase / stride_ || x % stride_ != phase % stride_) continue;
        taps.push_back(i);
        offsets.push_back(i / area * kind.grad_plane + (kind.reach - y / stride_) * kind.row +
                          (kind.reach - x / stride_) * plan.part.lanes);
      }
      counts.push_back(int64_t(taps.size()));
      const T* own = &values[unit.weights[level_]];
      const auto turned = [&](int64_t in, int64_t out_channel, int tap) {
        return own[(out_channel * kind.c_in + in) * 9 + 8 - tap];
      };
      if (kind.winograd) {
        pack_winograd(kind.c_out, kind.c_in, turned, out);
        out += winograd_weights(kind.c_out, kind.c_in);
        continue;
      }
      if (kind.pairs) {
        out = pack_pairs(kind.c_out, kind.c_in, turned, out);
        continue;
      }
      for (int64_t c0 = 0; c0 < kind.c_in; c0 += kChannelBlock) {
        const int64_t c1 = std::min<int64_t>(c0 + kChannelBlock, kind.c_in);
        for (int64_t i : taps) {
          for (int64_t c = c0; c < c1; ++c) {
            *out++ = values[unit.weights[level_] + (i / area * kind.c_in + c) * area + i % area];
          }
        }
      }
    }
    if (first) {
      kind.phase_taps = offsets_.emplace_back(std::move(counts)).data();
      kind.grad_offsets = offsets_.emplace_back(std::move(offsets)).data();
    }
  }
}

template <class T>
void BackwardPlan::run_typed(const UnitRange& units, const BackwardCall& whole, Tensor* grad_weight,
                             Tensor* grad_bias, std::vector<double>* in_sums) const {
  const int64_t first_in = stack_.first_channel(level_, units.first);
  const int64_t first_out = stack_.first_channel(level_ + 1, units.first);
  const int64_t first_weight = stack_.first_weight(level_, units.first);
  const int64_t ins = stack_.first_channel(level_, units.last) - first_in;
  const int64_t outs = stack_.first_channel(level_ + 1, units.last) - first_out;
  const int64_t weights = stack_.first_weight(level_, units.last) - first_weight;
  // Partial sums of all parts, blocks and segments, in this order.
  std::vector<T> weight_sums, bias_sums;
  std::vector<double> norm_sums;
  int64_t count = 0;
  for (const PartPlan& plan : plans_) count += plan.blocks * plan.segments;
  if (grad_weight) weight_sums.resize(size_t(count * weights));
  if (grad_bias) bias_sums.resize(size_t(count * outs));
  if (in_sums) norm_sums.resize(size_t(count * ins * 2));

  const auto backward = kernels().backward[sizeof(T) == 8 ? 1 : 0];
  int64_t before = 0;
  for (const PartPlan& plan : plans_) {
    BackwardCall call = whole;
    for (Image* image : {&call.grad, &call.x, &call.z, &call.grad_x}) {
      *image = images_of(*image, plan.part.first, plan.part.count);
    }
    call.lanes = plan.part.lanes;
    call.units = plan.units.data();
    call.block = plan.block;
    call.segments = plan.segments;
    call.sums_size = grad_weight ? plan.sums_size : 0;
    call.weight_step = weights;
    call.bias_step = outs;
    call.sums_step = 2 * ins;
    if (grad_weight) call.grad_weight = weight_sums.data() + before * weights - first_weight;
    if (grad_bias) call.grad_bias = bias_sums.data() + before * outs - first_out;
    if (in_sums) call.in_sums = norm_sums.data() + 2 * (before * ins - first_in);
    before += plan.blocks * plan.segments;
    const int64_t bytes = plan.scratch_bytes + stage_bytes(call.lanes, plan.segments) +
                          group_ * call.sums_size * compute_size(x_.dtype);
    check_scratch(bytes);
    const int64_t groups = (units.last - units.first + group_ - 1) / group_;
    for_each_item(plan.blocks * plan.segments * groups, [&](int64_t item) {
      const int64_t first = units.first + item % groups * group_;
      const int64_t outer = item / groups;
      backward(call, outer / plan.segments, outer % plan.segments, first,
               std::min(first + group_, units.last), scratch(bytes));
    });
  }
  if (grad_weight) {
    sum_parts(weight_sums.data(), count, weights, weights, *grad_weight, first_weight);
  }
  if (grad_bias) sum_parts(bias_sums.data(), count, outs, outs, *grad_bias, first_out);
  if (in_sums) {
    in_sums->assign(size_t(ins * 2), 0.0);
    for (size_t i = 0; i < norm_sums.size(); ++i) (*in_sums)[i % in_sums->size()] += norm_sums[i];
  }
}

void BackwardPlan::run(const UnitRange& units, const Image& x, const Image& grad,
                       const Image& grad_x, const BackwardNorms& norms, Tensor* grad_weight,
                       Tensor* grad_bias, std::vector<double>* in_sums) const {
  BackwardCall call{};
  call.grad = grad;
  call.x = x;
  call.z = norms.z;
  call.grad_x = grad_x;
  call.stride = int(stride_);
  call.out_norm = norms.out;
  call.out_activation = norms.out_activation;
  call.inv_std = norms.inv_std;
  call.mean_g = norms.mean_g;
  call.mean_gz = norms.mean_gz;
  call.in_norm = norms.in;
  call.in_activation = norms.in_activation;
  call.in_inv_std = norms.in_inv_std;
  call.around = goes_around_caches(grad_x, 64);  // turned about, which sees to alignment
  if (x.dtype == Scalar::float64) {
    run_typed<double>(units, call, grad_weight, grad_bias, in_sums);
  } else {
    run_typed<float>(units, call, grad_weight, grad_bias, in_sums);
  }
}

}  // namespace bunit
