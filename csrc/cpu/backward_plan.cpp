#include "backward_plan.h"

#include <algorithm>

#include "pack.h"

namespace bunit {
namespace {

constexpr int64_t kStageBytes = 512 * 1024;  // planes of interleaved channels
constexpr int64_t kCacheBytes = 256 * 1024;  // a segment's buffers: first and second level
// Work is split alike whatever the number of threads, so that sums come out the same: into about
// this many items, blocks of images first.
constexpr int64_t kItems = 64;

}  // namespace

BackwardPlan::BackwardPlan(const Stack& stack, int level, const Image& x, const Image& grad,
                           const Tensor* weight, int64_t stride, int64_t dilation)
    : level_(level),
      stride_(stride),
      weight_size_(stack.weight_sizes[level]),
      x_(x),
      grad_(grad),
      kinds_(size_t(stack.kinds)) {
  const int64_t count = int64_t(stack.units.size());
  blocks_ = std::clamp<int64_t>((kItems + count - 1) / count, 1, std::max<int64_t>(1, x.n));
  block_ = (x.n + blocks_ - 1) / std::max<int64_t>(1, blocks_);
  blocks_ = x.n == 0 ? 0 : (x.n + block_ - 1) / block_;

  group_ = units_per_item(x, grad, count);
  groups_ = (count + group_ - 1) / group_;
  group_in_ = group_channels(stack, level, group_);
  group_out_ = group_channels(stack, level + 1, group_);

  int64_t widest = 0;
  for (const Unit& unit : stack.units) {
    reach_ = std::max(reach_, dilation * (unit.kernel - 1) / stride);
    pad_ = std::max<int64_t>(pad_, unit.pad);
    const int64_t planes = unit.widths[level + 1] + 2 * unit.widths[level];
    widest = std::max(widest, planes * (grad.w + 2 * unit.pad));
  }
  const int64_t in_cache = std::max<int64_t>(4, kCacheBytes / (widest * compute_size(x.dtype)));
  const int64_t parallel = (kItems + blocks_ * count - 1) / std::max<int64_t>(1, blocks_ * count);
  const int64_t worth = std::max<int64_t>(1, grad.h * grad.w / 256);
  segments_ = std::max((grad.h + in_cache - 1) / in_cache, std::min(parallel, worth));
  segments_ = std::max(segments_, stage_bytes(1) / kStageBytes);
  segments_ = std::clamp<int64_t>(segments_, 1, grad.h);
  rows_ = (grad.h + segments_ - 1) / segments_;

  std::vector<bool> made(kinds_.size());
  for (const Unit& unit : stack.units) {
    if (!made[size_t(unit.kind)]) make_kind(unit, dilation);
    made[size_t(unit.kind)] = true;
    BackwardUnit out{};
    out.kind = &kinds_[size_t(unit.kind)];
    out.in_channel = unit.channels[level];
    out.out_channel = unit.channels[level + 1];
    out.weight = unit.weights[level];
    units_.push_back(out);
  }
  if (!weight) return;
  if (x.dtype == Scalar::float64) {
    pack<double>(stack, *weight, dilation);
  } else {
    pack<float>(stack, *weight, dilation);
  }
}

// What planes in place of interleaved channels take: gradient, pre-norm output, input and its
// gradient, of which some may not be needed.
int64_t BackwardPlan::stage_bytes(int64_t segments) const {
  const int64_t rows = (grad_.h + segments - 1) / segments;
  // The last segment may own input rows below those of its output rows.
  const int64_t below = std::max<int64_t>(0, (x_.h - 1 + pad_) / stride_ + 1 - grad_.h);
  const int64_t in_rows = std::min(x_.h, (rows + below + reach_ + 2) * stride_ + pad_);
  const int64_t out_rows = std::min(grad_.h, rows + below + 2 * reach_);
  const int64_t elements = 2 * group_in_ * in_rows * x_.w + 2 * group_out_ * out_rows * grad_.w;
  return (elements + 4 * 64) * compute_size(x_.dtype);
}

void BackwardPlan::make_kind(const Unit& unit, int64_t dilation) {
  BackwardKind& kind = kinds_[size_t(unit.kind)];
  kind = {};
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
  kind.row = std::max(grad_.w + kind.reach, in_columns);

  // The last segment may own input rows below those of its output rows.
  const int64_t below = std::max<int64_t>(0, in_rows - grad_.h);
  const int64_t lanes = kernels().vector_bytes / compute_size(x_.dtype);
  const int64_t slack = kind.row + 2 * lanes + kind.reach + unit.pad;
  kind.grad_plane = padded_plane((rows_ + below + kind.reach) * kind.row + slack, lanes);
  kind.x_plane = padded_plane((rows_ + kind.reach) * kind.row + slack, lanes);
  kind.out_plane = padded_plane((rows_ + below) * kind.row + slack, lanes);
  const int64_t spare = std::max({kind.row, x_.w, grad_.w}) + lanes;
  const int64_t elements = 2 * spare + kind.c_out * kind.grad_plane +
                           int64_t(kind.c_in) * kind.phases * kind.phases * kind.x_plane +
                           kind.c_in * kind.out_plane;
  scratch_bytes_ = std::max(scratch_bytes_, elements * compute_size(x_.dtype));

  offsets_.push_back(
      tap_offsets(unit, level_, stride_, dilation, kind.phases, kind.x_plane, kind.row));
  kind.x_offsets = offsets_.back().data();

  // Masks of 4 or 8 bytes an element, kept as 8-byte words.
  const int64_t size = rows_ * kind.row + 2 * lanes;
  std::vector<int64_t>& mask = offsets_.emplace_back(size_t(size), 0);
  for (int64_t p = 0; p < rows_ * kind.row; ++p) {
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
void BackwardPlan::pack(const Stack& stack, const Tensor& weight, int64_t dilation) {
  const Values<T> values(weight);
  packed_.resize(size_t(weight_size_ * int64_t(sizeof(T)) + 7) / 8);
  T* out = reinterpret_cast<T*>(packed_.data());
  std::vector<bool> made(kinds_.size());
  for (size_t u = 0; u < units_.size(); ++u) {
    const Unit& unit = stack.units[u];
    BackwardKind& kind = kinds_[size_t(unit.kind)];
    const bool first = !made[size_t(unit.kind)];
    made[size_t(unit.kind)] = true;
    std::vector<int64_t> counts, offsets;
    units_[u].weights = out;
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
                          kind.reach - x / stride_);
      }
      counts.push_back(int64_t(taps.size()));
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

namespace {

template <class T>
void sum_parts(const std::vector<T>& parts, Tensor& out) {
  const int64_t size = out.numel();
  const int64_t count = size == 0 ? 0 : int64_t(parts.size()) / size;
  for_each_item((size + 1023) / 1024, [&](int64_t item) {
    for (int64_t i = item * 1024; i < std::min(size, (item + 1) * 1024); ++i) {
      double total = 0;
      for (int64_t part = 0; part < count; ++part) total += double(parts[size_t(part * size + i)]);
      narrow(total, out, i);
    }
  });
}

template <class T>
void run_typed(BackwardCall call, int64_t blocks,
               const std::function<void(const BackwardCall&)>& go, Tensor* grad_weight,
               Tensor* grad_bias) {
  std::vector<T> weight_parts, bias_parts;
  if (grad_weight) {
    weight_parts.resize(size_t(blocks * call.segments * call.weight_size));
    bias_parts.resize(size_t(blocks * call.segments * call.grad.c));
    call.grad_weight = weight_parts.data();
    call.grad_bias = bias_parts.data();
  }
  go(call);
  if (grad_weight) {
    sum_parts(weight_parts, *grad_weight);
    sum_parts(bias_parts, *grad_bias);
  }
}

}  // namespace

void BackwardPlan::run(const Image& x, const Image& grad, const Image& grad_x,
                       const BackwardNorms& norms, Tensor* grad_weight, Tensor* grad_bias,
                       std::vector<double>* in_sums) const {
  const int64_t count = int64_t(units_.size());
  BackwardCall call{};
  call.grad = grad;
  call.x = x;
  call.z = norms.z;
  call.grad_x = grad_x;
  call.stride = int(stride_);
  call.units = units_.data();
  call.out_norm = norms.out;
  call.out_activation = norms.out_activation;
  call.inv_std = norms.inv_std;
  call.mean_g = norms.mean_g;
  call.mean_gz = norms.mean_gz;
  call.in_norm = norms.in;
  call.in_activation = norms.in_activation;
  call.in_inv_std = norms.in_inv_std;
  call.weight_size = weight_size_;
  call.block = block_;
  call.segments = segments_;
  std::vector<double> sums;
  if (in_sums) {
    sums.resize(size_t(blocks_ * segments_ * x.c * 2));
    call.in_sums = sums.data();
  }

  const auto backward = kernels().backward[compute_index(x.dtype)];
  const int64_t bytes = scratch_bytes_ + stage_bytes(segments_);
  const auto go = [&](const BackwardCall& ready) {
    for_each_item(blocks_ * segments_ * groups_, [&](int64_t item) {
      const int64_t first = item % groups_ * group_;
      const int64_t outer = item / groups_;
      backward(ready, outer / segments_, outer % segments_, first, std::min(first + group_, count),
               scratch(bytes));
    });
  };
  if (x.dtype == Scalar::float64) {
    run_typed<double>(call, blocks_, go, grad_weight, grad_bias);
  } else {
    run_typed<float>(call, blocks_, go, grad_weight, grad_bias);
  }
  if (in_sums) {
    in_sums->assign(size_t(x.c * 2), 0.0);
    for (size_t i = 0; i < sums.size(); ++i) (*in_sums)[i % size_t(x.c * 2)] += sums[i];
  }
}

}  // namespace bunit
