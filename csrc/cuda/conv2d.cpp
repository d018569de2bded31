// Operators on convolutional units without batch statistics.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "check.h"
#include "cuda/level_conv.h"
#include "cuda/level_grad_weight.h"
#include "cuda/norms.h"
#include "cuda/tensors.h"
#include "cuda/unit_forward.h"
#include "text.h"

namespace bunit::gpu {
namespace {

// Level by level, for units whose tiles do not fit shared memory.
void run_levels(const Layer& layer, const UnitForwardCall& call, const LevelSizes& sizes,
                const Tensor& x, const Tensor& y, const Context& on) {
  const bool channels_last = output_is_channels_last(y);
  Tensor in = x;  // holds what `from` sees
  View from = call.x;
  for (int l = 0; l < call.depth; ++l) {
    const bool last = l == call.depth - 1;
    const int64_t stride = l == 0 ? call.stride : 1;
    LevelConvCall level{};
    level.x.view = from;
    level.weight = call.weights[l];
    level.bias = call.biases[l];
    level.stride = int(stride);
    level.dilation = call.dilation;
    level.out = last ? call.out : call.hidden;
    Tensor out = y;
    level.y = call.y;
    if (!last) {
      const Size size = sizes[size_t(l) + 1];
      out = new_like(x, {x.size(0), layer.stack.channels[l + 1], size.h, size.w}, channels_last);
      level.y = view_of(out);
    }
    level_conv(layer, l, level, on);
    in = out;
    from = level.y;
  }
  if (call.residual.data) {
    apply_norm(call.y, call.y, call.residual, {}, Activation::identity, call.after_residual, on);
  }
}

Tensor run(Form form, const Tensor& x, const std::vector<Tensor>& weights,
           const std::vector<Tensor>& biases, const std::optional<Tensor>& residual,
           const std::vector<int64_t>& units, int64_t stride, int64_t dilation, Activation hidden,
           Activation out, Activation after_residual) {
  const auto layer = conv_layer(units, int64_t(weights.size()));
  const Stack& stack = layer->stack;
  const LevelSizes sizes =
      check_conv2d(stack, form, x, weights, biases, residual, stride, dilation);
  UnitForwardCall call{};
  call.depth = stack.depth;
  call.stride = int(stride);
  call.dilation = int(dilation);
  call.hidden = hidden;
  call.out = out;
  call.after_residual = after_residual;
  std::vector<Tensor> held;  // as long as kernels are being launched
  for (int l = 0; l < stack.depth; ++l) {
    held.push_back(dense(weights[size_t(l)]));
    call.weights[l] = held.back().const_data_ptr();
    if (biases.empty()) continue;
    held.push_back(with_dtype(biases[size_t(l)], x.scalar_type()));
    call.biases[l] = held.back().const_data_ptr();
  }
  const Size size = sizes[size_t(stack.depth)];
  const Tensor y = new_like(x, {x.size(0), stack.channels[stack.depth], size.h, size.w},
                            output_is_channels_last(x));
  call.x = view_of(x);
  call.y = view_of(y);
  if (residual) call.residual = view_of(*residual);
  if (y.numel() == 0) return y;
  const OnDevice device(x);
  if (!unit_forward(*layer, call, device)) run_levels(*layer, call, sizes, x, y, device);
  return y;
}

Tensor stacked_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                      const Text& activation) {
  std::vector<Tensor> biases;
  if (bias) biases.push_back(*bias);
  return run(Form::level, x, {weight}, biases, std::nullopt, units, stride, dilation,
             Activation::identity, activation_of(activation, "activation"), Activation::identity);
}

Tensor stacked_unit_conv2d(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                           bool shuffle, const Text& activation, const Text& out_activation,
                           const Text& residual_activation) {
  check_unshuffled(shuffle);
  return run(Form::units, x, weights, biases, residual, units, stride, dilation,
             activation_of(activation, "activation"),
             activation_of(out_activation, "out_activation"),
             activation_of(residual_activation, "residual_activation"));
}

Tensor grad_input(const Layer& layer, const Tensor& grad, const Tensor& weight,
                  const std::vector<int64_t>& input_size, int64_t stride, int64_t dilation) {
  Tensor grad_x = new_like(grad, input_size, output_is_channels_last(grad));
  if (grad_x.numel() == 0) return grad_x;
  const Tensor dense_weight = dense(weight);
  LevelConvCall call{};
  call.x.view = view_of(grad);
  call.y = view_of(grad_x);
  call.weight = dense_weight.const_data_ptr();
  call.stride = int(stride);
  call.dilation = int(dilation);
  call.transposed = true;
  const OnDevice device(grad);
  level_conv(layer, 0, call, device);
  return grad_x;
}

std::tuple<Tensor, Tensor> grad_weight(const Layer& layer, const Tensor& grad, const Tensor& x,
                                       const std::vector<int64_t>& weight_shape, int64_t stride,
                                       int64_t dilation) {
  Tensor of_weight = new_like(x, weight_shape, false);
  Tensor of_bias = new_like(x, {layer.stack.channels[1]}, false);
  const OnDevice device(x);
  LevelGradWeightCall call{};
  call.x.view = view_of(x);
  call.grad.view = view_of(grad);
  call.stride = int(stride);
  call.dilation = int(dilation);
  level_grad_weight(layer, 0, call, array_of(of_weight), array_of(of_bias), device);
  return {of_weight, of_bias};
}

Tensor stacked_conv2d_grad_input(const Tensor& grad, const Tensor& weight,
                                 const std::vector<int64_t>& input_size,
                                 const std::vector<int64_t>& units, int64_t stride,
                                 int64_t dilation) {
  const auto layer = conv_layer(units, 1);
  check_conv2d_grad_input(layer->stack, grad, weight, input_size, stride, dilation);
  return grad_input(*layer, grad, weight, input_size, stride, dilation);
}

std::tuple<Tensor, Tensor> stacked_conv2d_grad_weight(const Tensor& grad, const Tensor& x,
                                                      const std::vector<int64_t>& weight_shape,
                                                      const std::vector<int64_t>& units,
                                                      int64_t stride, int64_t dilation) {
  const auto layer = conv_layer(units, 1);
  check_conv2d_grad_weight(layer->stack, grad, x, weight_shape, stride, dilation);
  return grad_weight(*layer, grad, x, weight_shape, stride, dilation);
}

std::tuple<Tensor, Tensor, Tensor> stacked_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                           const Tensor& weight,
                                                           const std::vector<int64_t>& units,
                                                           int64_t stride, int64_t dilation) {
  const auto layer = conv_layer(units, 1);
  check_conv2d_backward(layer->stack, grad, x, weight, stride, dilation);
  auto [of_weight, of_bias] = grad_weight(*layer, grad, x, weight.sizes().vec(), stride, dilation);
  return {grad_input(*layer, grad, weight, x.sizes().vec(), stride, dilation), of_weight, of_bias};
}

}  // namespace
}  // namespace bunit::gpu

BUNIT_LIBRARY_IMPL(m) {
  m.impl("stacked_conv2d", TORCH_BOX(&bunit::gpu::stacked_conv2d));
  m.impl("stacked_unit_conv2d", TORCH_BOX(&bunit::gpu::stacked_unit_conv2d));
  m.impl("stacked_conv2d_grad_input", TORCH_BOX(&bunit::gpu::stacked_conv2d_grad_input));
  m.impl("stacked_conv2d_grad_weight", TORCH_BOX(&bunit::gpu::stacked_conv2d_grad_weight));
  m.impl("stacked_conv2d_backward", TORCH_BOX(&bunit::gpu::stacked_conv2d_backward));
}
