// stacked_unit_conv2d_train: every level followed by batch normalisation with the batch's own
// statistics (twin of csrc/cpu/conv2d_train.cpp). A level normalises and activates the one before
// it as it loads, and leaves the moments of its own output behind as it stores.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/level_conv.h"
#include "cuda/level_grad_weight.h"
#include "cuda/norms.h"

namespace bunit::gpu {
namespace {

// Batch statistics and parameters of all levels' norms, as the kernels take them.
class Norms {
 public:
  Norms(const Stack& stack, const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
        const Tensor& stats, const Tensor& like)
      : stats_(static_cast<float*>(stats.mutable_data_ptr())),
        total_(stats.size(1)),
        scales_(new_tensor(like, {stats.size(1)}, ScalarType::Float)) {
    int64_t first = 0;
    for (int l = 0; l < stack.depth; ++l) {
      STD_TORCH_CHECK(gammas[size_t(l)].numel() == stack.channels[l + 1] &&
                          betas[size_t(l)].numel() == stack.channels[l + 1],
                      "gamma or beta of level ", l + 1, " does not fit the units");
      gammas_.push_back(as_float(gammas[size_t(l)]));
      betas_.push_back(as_float(betas[size_t(l)]));
      firsts_.push_back(first);
      first += stack.channels[l + 1];
    }
  }

  DeviceNorm norm(int l) {
    const int64_t first = firsts_[size_t(l)];
    return {stats_ + first, floats(scales_) + first,
            static_cast<const float*>(betas_[size_t(l)].const_data_ptr()), stats_ + total_ + first};
  }
  const float* gamma(int l) const {
    return static_cast<const float*>(gammas_[size_t(l)].const_data_ptr());
  }
  float* stats(int l) { return stats_ + firsts_[size_t(l)]; }
  float* scale(int l) { return floats(scales_) + firsts_[size_t(l)]; }
  int64_t total() const { return total_; }
  int64_t first(int l) const { return firsts_[size_t(l)]; }

 private:
  float* stats_;  // [3, total]
  int64_t total_;
  Tensor scales_;
  std::vector<Tensor> gammas_, betas_;
  std::vector<int64_t> firsts_;
};

std::tuple<Tensor, std::vector<Tensor>, Tensor> train(
    const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& gammas,
    const std::vector<Tensor>& betas, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation, double eps,
    const std::string& activation, const std::string& out_activation,
    const std::string& residual_activation) {
  const int depth = int(weights.size());
  const auto layer = conv_layer(units, depth);
  const Stack& stack = layer->stack;
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == stack.channels[0], "expected an input [N, ",
                  stack.channels[0], ", H, W]");
  STD_TORCH_CHECK(gammas.size() == weights.size() && betas.size() == weights.size(),
                  "expected a gamma and a beta a level: ", weights.size(), " levels, ",
                  gammas.size(), " gammas, ", betas.size(), " betas");
  const OnDevice device(x);
  const bool channels_last = wants_channels_last(x);
  int64_t total = 0;
  for (int l = 0; l < depth; ++l) total += stack.channels[l + 1];
  Tensor stats = new_tensor(x, {3, total}, ScalarType::Float);
  Norms norms(stack, gammas, betas, stats, x);

  std::vector<Tensor> pre_norms;
  for (int l = 0; l < depth; ++l) {
    const Tensor& weight = weights[size_t(l)];
    STD_TORCH_CHECK(
        weight.numel() == stack.weight_sizes[l] && weight.scalar_type() == x.scalar_type(),
        "the weight of level ", l + 1, " does not fit the units or the input's dtype");
    const Tensor dense_weight = dense(weight);
    LevelConvCall call{};
    call.x.view = view_of(l == 0 ? x : pre_norms.back());
    if (l > 0) {
      call.x.norm = norms.norm(l - 1);
      call.x.activation = activation_of(activation);
    }
    call.stride = l == 0 ? int(stride) : 1;
    call.dilation = int(dilation);
    const Unit& unit = stack.units.front();
    const int64_t h = conv_size(call.x.view.h, unit.kernel, unit.pad, call.stride, dilation);
    const int64_t w = conv_size(call.x.view.w, unit.kernel, unit.pad, call.stride, dilation);
    STD_TORCH_CHECK(h >= 1 && w >= 1 && x.size(0) >= 1, "level ", l + 1, " has no pixels");
    pre_norms.push_back(new_like(x, {x.size(0), stack.channels[l + 1], h, w}, channels_last));
    call.y = view_of(pre_norms.back());
    call.weight = dense_weight.const_data_ptr();
    const int64_t parts = level_conv_parts(*layer, l, call);
    Tensor moments = new_tensor(x, {parts, stack.channels[l + 1], 3}, ScalarType::Float);
    call.moments = reinterpret_cast<Moments*>(floats(moments));
    level_conv(*layer, l, call, x, device.stream());
    finish_moments(call.moments, parts, int(stack.channels[l + 1]), eps, norms.gamma(l),
                   norms.stats(l), total, norms.scale(l), device.stream());
  }

  const Tensor& z = pre_norms.back();
  const Tensor y = new_like(x, {z.size(0), z.size(1), z.size(2), z.size(3)}, channels_last);
  View added{};
  if (residual) {
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(residual->dim() == 4 && residual->size(i) == y.size(i) &&
                          residual->scalar_type() == y.scalar_type(),
                      "the residual must have the output's shape and dtype");
    }
    added = view_of(*residual);
  }
  apply_norm(view_of(z), view_of(y), added, norms.norm(depth - 1), activation_of(out_activation),
             activation_of(residual_activation), x, device.stream());
  return {y, pre_norms, stats};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> train_backward(
    const Tensor& gradient, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
    const std::vector<Tensor>& pre_norms, const Tensor& given_stats,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
    const std::string& activation, const std::string& out_activation) {
  const int depth = int(weights.size());
  const auto layer = conv_layer(units, depth);
  const Stack& stack = layer->stack;
  const OnDevice device(x);
  const Tensor stats = as_float(given_stats);
  Norms norms(stack, gammas, betas, stats, x);
  const int64_t total = norms.total();
  Tensor grad_affine = new_tensor(x, {2, total}, ScalarType::Float);
  Tensor means = new_tensor(x, {2, total}, ScalarType::Float);
  for (int l = 0; l < depth; ++l) {
    scale_of(norms.gamma(l), norms.norm(l).inv_std, int(stack.channels[l + 1]), norms.scale(l),
             device.stream());
  }

  Tensor grad = gradient;
  std::vector<Tensor> grad_weights(weights);
  for (int l = depth - 1; l >= 0; --l) {
    const size_t i = size_t(l);
    const Tensor& input = l == 0 ? x : pre_norms[i - 1];
    const int64_t first = norms.first(l);
    Source through{};  // the gradient of the level's convolution's output
    through.view = view_of(grad);
    through.z = view_of(pre_norms[i]);
    through.norm = norms.norm(l);
    through.activation = activation_of(l == depth - 1 ? out_activation : activation);
    through.mean_g = floats(means) + first;
    through.mean_gz = floats(means) + total + first;
    sum_grads(through.view, through.z, through.norm, through.activation, x,
              floats(grad_affine) + first, floats(grad_affine) + total + first,
              floats(means) + first, floats(means) + total + first, device.stream());

    LevelGradWeightCall of_weight{};
    of_weight.grad = through;
    of_weight.x.view = view_of(input);
    if (l > 0) {
      of_weight.x.norm = norms.norm(l - 1);
      of_weight.x.activation = activation_of(activation);
    }
    of_weight.stride = l == 0 ? int(stride) : 1;
    of_weight.dilation = int(dilation);
    grad_weights[i] = new_tensor(x, weights[i].sizes().vec(), weights[i].scalar_type());
    Tensor grad_bias = new_tensor(x, {stack.channels[l + 1]}, ScalarType::Float);
    level_grad_weight(*layer, l, of_weight, x, grad_weights[i], grad_bias, device.stream());

    const Tensor grad_in = new_like(x, {input.size(0), input.size(1), input.size(2), input.size(3)},
                                    wants_channels_last(input));
    const Tensor dense_weight = dense(weights[i]);
    LevelConvCall of_input{};
    of_input.x = through;
    of_input.y = view_of(grad_in);
    of_input.weight = dense_weight.const_data_ptr();
    of_input.stride = of_weight.stride;
    of_input.dilation = int(dilation);
    of_input.transposed = true;
    level_conv(*layer, l, of_input, x, device.stream());
    grad = grad_in;
  }
  return {grad, grad_weights, grad_affine};
}

}  // namespace
}  // namespace bunit::gpu

BUNIT_LIBRARY_IMPL(m) {
  m.impl("stacked_unit_conv2d_train", TORCH_BOX(&bunit::gpu::train));
  m.impl("stacked_unit_conv2d_train_backward", TORCH_BOX(&bunit::gpu::train_backward));
}
