// Operators on linear units: 1x1 convolutions over rows, a whole unit fused as any other.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/level_conv.h"
#include "cuda/level_grad_weight.h"
#include "cuda/unit_forward.h"

namespace bunit::gpu {
namespace {

std::vector<int64_t> with_channels(const Tensor& x, int64_t channels) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  shape.push_back(channels);
  return shape;
}

void check_rows(const Tensor& x, int64_t channels) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == channels, "expected ", channels,
                  " features in the last dimension");
}

Tensor run(const Tensor& input, const std::vector<Tensor>& weights,
           const std::vector<Tensor>& biases, const std::vector<int64_t>& units, Activation hidden,
           Activation out) {
  const auto layer = linear_layer(units, int64_t(weights.size()));
  const Stack& stack = layer->stack;
  const Tensor x = dense(input);
  check_rows(x, stack.channels[0]);
  UnitForwardCall call{};
  call.depth = stack.depth;
  call.stride = call.dilation = 1;
  call.hidden = hidden;
  call.out = out;
  std::vector<Tensor> held;
  for (size_t l = 0; l < weights.size(); ++l) {
    STD_TORCH_CHECK(weights[l].numel() == stack.weight_sizes[l] &&
                        weights[l].scalar_type() == x.scalar_type() &&
                        (biases.empty() || biases[l].numel() == stack.channels[l + 1]),
                    "weight or bias of level ", l + 1, " does not fit the units");
    held.push_back(dense(weights[l]));
    call.weights[l] = held.back().const_data_ptr();
    if (biases.empty()) continue;
    held.push_back(with_dtype(biases[l], x.scalar_type()));
    call.biases[l] = held.back().const_data_ptr();
  }
  Tensor y = new_like(x, with_channels(x, stack.channels[stack.depth]), false);
  if (y.numel() == 0) return y;
  const OnDevice device(x);
  call.x = rows_of(x);
  call.y = rows_of(y);
  if (unit_forward(*layer, call, x, device.stream())) return y;

  // Units too wide for shared memory: level by level.
  Tensor in = x;
  for (int l = 0; l < call.depth; ++l) {
    const bool last = l == call.depth - 1;
    const Tensor to = last ? y : new_like(x, with_channels(x, stack.channels[l + 1]), false);
    LevelConvCall level{};
    level.x.view = rows_of(in);
    level.y = rows_of(to);
    level.weight = call.weights[l];
    level.bias = call.biases[l];
    level.stride = level.dilation = 1;
    level.out = last ? out : hidden;
    level_conv(*layer, l, level, x, device.stream());
    in = to;
  }
  return y;
}

Tensor stacked_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& units, const std::string& activation) {
  std::vector<Tensor> biases;
  if (bias) biases.push_back(*bias);
  return run(x, {weight}, biases, units, Activation::identity, activation_of(activation));
}

Tensor stacked_unit_linear(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::vector<int64_t>& units,
                           const std::string& activation, const std::string& out_activation) {
  return run(x, weights, biases, units, activation_of(activation), activation_of(out_activation));
}

Tensor stacked_linear_grad_input(const Tensor& gradient, const Tensor& weight,
                                 const std::vector<int64_t>& units) {
  const auto layer = linear_layer(units, 1);
  const Stack& stack = layer->stack;
  const Tensor grad = dense(gradient), dense_weight = dense(weight);
  check_rows(grad, stack.channels[1]);
  STD_TORCH_CHECK(
      weight.numel() == stack.weight_sizes[0] && weight.scalar_type() == grad.scalar_type(),
      "the weight does not fit the units or the gradient's dtype");
  Tensor grad_x = new_like(grad, with_channels(grad, stack.channels[0]), false);
  if (grad_x.numel() == 0) return grad_x;
  const OnDevice device(grad);
  LevelConvCall call{};
  call.x.view = rows_of(grad);
  call.y = rows_of(grad_x);
  call.weight = dense_weight.const_data_ptr();
  call.stride = call.dilation = 1;
  call.transposed = true;
  level_conv(*layer, 0, call, grad, device.stream());
  return grad_x;
}

std::tuple<Tensor, Tensor> stacked_linear_grad_weight(const Tensor& gradient, const Tensor& input,
                                                      const std::vector<int64_t>& weight_shape,
                                                      const std::vector<int64_t>& units) {
  const auto layer = linear_layer(units, 1);
  const Stack& stack = layer->stack;
  const Tensor grad = dense(gradient), x = dense(input);
  check_rows(grad, stack.channels[1]);
  check_rows(x, stack.channels[0]);
  Tensor grad_weight = new_like(x, weight_shape, false);
  Tensor grad_bias = new_like(x, {stack.channels[1]}, false);
  STD_TORCH_CHECK(
      grad_weight.numel() == stack.weight_sizes[0] && grad.scalar_type() == x.scalar_type(),
      "the weight's shape or the gradient's dtype does not fit");
  const OnDevice device(x);
  LevelGradWeightCall call{};
  call.x.view = rows_of(x);
  call.grad.view = rows_of(grad);
  call.stride = call.dilation = 1;
  level_grad_weight(*layer, 0, call, x, grad_weight, grad_bias, device.stream());
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace bunit::gpu

BUNIT_LIBRARY_IMPL(m) {
  m.impl("stacked_linear", TORCH_BOX(&bunit::gpu::stacked_linear));
  m.impl("stacked_unit_linear", TORCH_BOX(&bunit::gpu::stacked_unit_linear));
  m.impl("stacked_linear_grad_input", TORCH_BOX(&bunit::gpu::stacked_linear_grad_input));
  m.impl("stacked_linear_grad_weight", TORCH_BOX(&bunit::gpu::stacked_linear_grad_weight));
}
