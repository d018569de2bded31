// stacked_unit_conv2d_train: every level followed by batch normalisation with the batch's own
// statistics. A level's statistics need all of its output, so each level is a pass of its own; it
// normalises and activates the level before it as it loads, and adds up its own statistics as it
// stores.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "backward_plan.h"
#include "forward_plan.h"
#include "pack.h"

namespace bunit {
namespace {

// Values of one level's channels in the compute type, some rows of them.
class ChannelRows {
 public:
  ChannelRows(size_t rows, size_t channels, Scalar dtype)
      : channels_(channels), wide_(dtype == Scalar::float64), values_(rows * channels) {}

  void set(size_t row, size_t channel, double value) {
    const size_t i = row * channels_ + channel;
    if (wide_) {
      values_[i] = value;
    } else {
      reinterpret_cast<float*>(values_.data())[i] = float(value);
    }
  }
  const void* row(size_t i) const {
    return reinterpret_cast<const char*>(values_.data()) + i * channels_ * (wide_ ? 8 : 4);
  }

 private:
  size_t channels_;
  bool wide_;
  std::vector<double> values_;  // as storage
};

// Mean, scale and shift of one level's norm, and 1 / standard deviation.
class LevelNorm {
 public:
  LevelNorm(const Values<double>& gamma, const Values<double>& beta,
            const std::vector<double>& means, const std::vector<double>& inv_stds, Scalar dtype)
      : rows_(4, means.size(), dtype) {
    for (size_t c = 0; c < means.size(); ++c) {
      rows_.set(0, c, means[c]);
      rows_.set(1, c, gamma[int64_t(c)] * inv_stds[c]);
      rows_.set(2, c, beta[int64_t(c)]);
      rows_.set(3, c, inv_stds[c]);
    }
  }
  Norm norm() const { return {rows_.row(0), rows_.row(1), rows_.row(2)}; }
  const void* inv_std() const { return rows_.row(3); }

 private:
  ChannelRows rows_;
};

Tensor contiguous_like(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  return torch::stable::contiguous(
      t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The single-level stack that level `level` of `stack` is.
Stack level_stack(const std::vector<int64_t>& rows, int64_t depth, int level) {
  std::vector<int64_t> out;
  for (size_t i = 0; i < rows.size(); i += size_t(depth) + 4) {
    out.insert(out.end(), {rows[i], rows[i + 1], rows[i + 2], rows[i + 3 + size_t(level)],
                           rows[i + 4 + size_t(level)]});
  }
  return Stack::conv(out, 1);
}

// Runs body(n, c0, c1) over images and groups of channels.
void for_each_channels(const Image& image,
                       const std::function<void(int64_t, int64_t, int64_t)>& body) {
  const int64_t group = std::max<int64_t>(16, 4096 / std::max<int64_t>(1, image.h * image.w));
  const int64_t groups = (image.c + group - 1) / group;
  for_each_item(image.n * groups, [&](int64_t item) {
    const int64_t c0 = item % groups * group;
    body(item / groups, c0, std::min(c0 + group, image.c));
  });
}

ScalarType stats_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> train(
    const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& gammas,
    const std::vector<Tensor>& betas, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation, double eps,
    const std::string& activation, const std::string& out_activation,
    const std::string& residual_activation) {
  const int depth = int(weights.size());
  const Stack stack = Stack::conv(units, depth);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == stack.channels[0], "expected an input [N, ",
                  stack.channels[0], ", H, W]");
  STD_TORCH_CHECK(gammas.size() == weights.size() && betas.size() == weights.size(),
                  "expected a gamma and a beta a level: ", weights.size(), " levels, ",
                  gammas.size(), " gammas, ", betas.size(), " betas");
  const bool channels_last = output_is_channels_last(x);
  int64_t total = 0;
  for (int l = 0; l < depth; ++l) {
    STD_TORCH_CHECK(weights[size_t(l)].numel() == stack.weight_sizes[l] &&
                        gammas[size_t(l)].numel() == stack.channels[l + 1] &&
                        betas[size_t(l)].numel() == stack.channels[l + 1],
                    "weight, gamma or beta of level ", l + 1, " does not fit the units");
    total += stack.channels[l + 1];
  }
  Tensor stats = torch::stable::empty({3, total}, stats_type(x), std::nullopt, x.device());
  const Narrowed stat_values(stats);

  std::vector<Tensor> pre_norms;
  std::vector<LevelNorm> norms;
  int64_t first = 0;
  for (int l = 0; l < depth; ++l) {
    const Image in = image_of(l == 0 ? x : pre_norms.back());
    const Stack level = level_stack(units, depth, l);
    const ForwardPlan plan(
        level, in, {weights[size_t(l)]}, {},
        {.stride = l == 0 ? stride : 1, .dilation = dilation, .pass = Pass::with_norms});
    const Tensor z =
        new_output(x, {x.size(0), level.channels[1], plan.out_h(), plan.out_w()}, channels_last);
    std::vector<Moments> moments(size_t(level.channels[1]));
    plan.run(in, image_of(z), {}, l == 0 ? Norm{} : norms.back().norm(), activation_of(activation),
             &moments);
    pre_norms.push_back(z);

    std::vector<double> means, inv_stds;
    for (int64_t c = 0; c < level.channels[1]; ++c) {
      const Moments& m = moments[size_t(c)];
      means.push_back(m.mean);
      inv_stds.push_back(1 / std::sqrt(m.m2 / m.count + eps));
      stat_values.set(first + c, means.back());
      stat_values.set(total + first + c, inv_stds.back());
      stat_values.set(2 * total + first + c, m.m2 / (m.count - 1));
    }
    first += level.channels[1];
    norms.emplace_back(Values<double>(gammas[size_t(l)]), Values<double>(betas[size_t(l)]), means,
                       inv_stds, scalar_of(x));
  }

  const Tensor& z = pre_norms.back();
  const Tensor y = new_output(x, {z.size(0), z.size(1), z.size(2), z.size(3)}, channels_last);
  AffineCall call{image_of(z),
                  image_of(y),
                  {},
                  norms.back().norm(),
                  activation_of(out_activation),
                  activation_of(residual_activation)};
  Tensor added = y;
  if (residual) {
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(residual->dim() == 4 && residual->size(i) == y.size(i) &&
                          residual->scalar_type() == y.scalar_type(),
                      "the residual must have the output's shape and dtype");
    }
    added = contiguous_like(*residual, channels_last);
    call.residual = image_of(added);
  }
  const auto affine = kernels().affine[compute_index(scalar_of(x))];
  for_each_channels(call.z, [&](int64_t n, int64_t c0, int64_t c1) { affine(call, n, c0, c1); });
  return {y, pre_norms, stats};
}

// Means of g and of g * zhat over a channel's values, from their sums, two a channel.
ChannelRows grad_means(const std::vector<double>& sums, double count, Scalar dtype) {
  ChannelRows means(2, sums.size() / 2, dtype);
  for (size_t i = 0; i < sums.size(); ++i) means.set(i % 2, i / 2, sums[i] / count);
  return means;
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> train_backward(
    const Tensor& gradient, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
    const std::vector<Tensor>& given_pre_norms, const Tensor& stats,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
    const std::string& activation, const std::string& out_activation) {
  const int depth = int(weights.size());
  const Stack stack = Stack::conv(units, depth);
  const Scalar dtype = scalar_of(x);
  const bool channels_last = output_is_channels_last(given_pre_norms.back());
  std::vector<Tensor> pre_norms;  // as train() made them, whatever became of their strides
  for (const Tensor& z : given_pre_norms) pre_norms.push_back(contiguous_like(z, channels_last));
  const int64_t total = stats.size(1);
  const Values<double> stat_values(stats);
  std::vector<LevelNorm> norms;
  std::vector<int64_t> firsts;
  int64_t first = 0;
  for (int l = 0; l < depth; ++l) {
    std::vector<double> means, inv_stds;
    for (int64_t c = first; c < first + stack.channels[l + 1]; ++c) {
      means.push_back(stat_values[c]);
      inv_stds.push_back(stat_values[total + c]);
    }
    norms.emplace_back(Values<double>(gammas[size_t(l)]), Values<double>(betas[size_t(l)]), means,
                       inv_stds, dtype);
    firsts.push_back(first);
    first += stack.channels[l + 1];
  }
  Tensor grad_affine = torch::stable::empty({2, total}, stats_type(x), std::nullopt, x.device());
  const Narrowed affine_values(grad_affine);

  Tensor grad = contiguous_like(gradient, channels_last);
  std::vector<double> sums;
  {
    const Image z = image_of(pre_norms.back());
    std::vector<double> parts(size_t(z.n * z.c * 2));
    const ReduceCall call{image_of(grad),
                          z,
                          norms.back().norm(),
                          norms.back().inv_std(),
                          activation_of(out_activation),
                          parts.data()};
    const auto reduce = kernels().reduce[compute_index(dtype)];
    for_each_channels(z, [&](int64_t n, int64_t c0, int64_t c1) { reduce(call, n, c0, c1); });
    sums.assign(size_t(z.c * 2), 0.0);
    for (size_t i = 0; i < parts.size(); ++i) sums[i % sums.size()] += parts[i];
  }

  std::vector<Tensor> grad_weights(weights);
  for (int l = depth - 1; l >= 0; --l) {
    const size_t i = size_t(l);
    const Image z = image_of(pre_norms[i]);
    const Tensor& input = l == 0 ? x : pre_norms[i - 1];
    for (int64_t c = 0; c < z.c; ++c) {
      affine_values.set(firsts[i] + c, sums[size_t(2 * c + 1)]);
      affine_values.set(total + firsts[i] + c, sums[size_t(2 * c)]);
    }
    const ChannelRows means = grad_means(sums, double(z.n * z.h * z.w), dtype);
    BackwardNorms around{};
    around.z = z;
    around.out = norms[i].norm();
    around.out_activation = l == depth - 1 ? activation_of(out_activation) : Activation::identity;
    around.inv_std = norms[i].inv_std();
    around.mean_g = means.row(0);
    around.mean_gz = means.row(1);
    if (l > 0) {
      around.in = norms[i - 1].norm();
      around.in_activation = activation_of(activation);
      around.in_inv_std = norms[i - 1].inv_std();
    }
    const Tensor grad_in =
        new_output(input, {input.size(0), input.size(1), input.size(2), input.size(3)},
                   l == 0 ? output_is_channels_last(x) : channels_last);
    grad_weights[i] = torch::stable::empty(weights[i].sizes(), weights[i].scalar_type(),
                                           std::nullopt, x.device());
    const Image in = image_of(input), out = image_of(grad);
    BackwardPlan(level_stack(units, depth, l), 0, in, out, &weights[i], l == 0 ? stride : 1,
                 dilation, Pass::with_norms)
        .run(in, out, image_of(grad_in), around, &grad_weights[i], nullptr,
             l > 0 ? &sums : nullptr);
    grad = grad_in;
  }
  return {grad, grad_weights, grad_affine};
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CPU, m) {
  m.impl("stacked_unit_conv2d_train", TORCH_BOX(&bunit::train));
  m.impl("stacked_unit_conv2d_train_backward", TORCH_BOX(&bunit::train_backward));
}
