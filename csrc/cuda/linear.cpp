// Operators on linear units: 1x1 convolutions over rows, a whole unit fused as any other; its
// backward pass has a kernel of its own.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "check.h"
#include "cuda/activate.h"
#include "cuda/level_conv.h"
#include "cuda/level_grad_weight.h"
#include "cuda/tensors.h"
#include "cuda/unit_forward.h"
#include "cuda/unit_linear_backward.h"
#include "text.h"

namespace bunit::gpu {
namespace {

std::vector<int64_t> with_channels(const Tensor& x, int64_t channels) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  shape.push_back(channels);
  return shape;
}

std::vector<Array> arrays_of(const std::vector<Tensor>& tensors) {
  std::vector<Array> arrays;
  for (const Tensor& t : tensors) arrays.push_back(array_of(t));
  return arrays;
}

// Weights and biases of a stack's levels, dense and of the rows' dtype; fills the pointers.
std::vector<Tensor> dense_parameters(const Tensor& x, const std::vector<Tensor>& weights,
                                     const std::vector<Tensor>& biases, const void** weight_data,
                                     const void** bias_data) {
  std::vector<Tensor> held;
  for (size_t l = 0; l < weights.size(); ++l) {
    held.push_back(dense(weights[l]));
    weight_data[l] = held.back().const_data_ptr();
    if (biases.empty()) continue;
    held.push_back(with_dtype(biases[l], x.scalar_type()));
    bias_data[l] = held.back().const_data_ptr();
  }
  return held;
}

// One level's output from its input or, `transposed`, the gradient of its input from that of its
// output.
Tensor run_level(const Layer& layer, int l, const Tensor& from, const void* weight,
                 const void* bias, Activation out, bool transposed, const Context& on) {
  const int64_t channels = layer.stack.channels[transposed ? l : l + 1];
  const Tensor to = new_like(from, with_channels(from, channels), false);
  LevelConvCall level{};
  level.x.view = rows_of(from);
  level.y = rows_of(to);
  level.weight = weight;
  level.bias = bias;
  level.stride = level.dilation = 1;
  level.out = out;
  level.transposed = transposed;
  level_conv(layer, l, level, on);
  return to;
}

Tensor run(Form form, const Tensor& input, const std::vector<Tensor>& weights,
           const std::vector<Tensor>& biases, const std::vector<int64_t>& units, Activation hidden,
           Activation out) {
  const auto layer = linear_layer(units, int64_t(weights.size()));
  const Stack& stack = layer->stack;
  check_linear(stack, form, input, weights, biases);
  const Tensor x = dense(input);
  UnitForwardCall call{};
  call.depth = stack.depth;
  call.stride = call.dilation = 1;
  call.hidden = hidden;
  call.out = out;
  const std::vector<Tensor> held = dense_parameters(x, weights, biases, call.weights, call.biases);
  Tensor y = new_like(x, with_channels(x, stack.channels[stack.depth]), false);
  if (y.numel() == 0) return y;
  const OnDevice device(x);
  call.x = rows_of(x);
  call.y = rows_of(y);
  if (unit_forward(*layer, call, device)) return y;

  // Units too wide for shared memory.
  y = x;
  for (int l = 0; l < call.depth; ++l) {
    y = run_level(*layer, l, y, call.weights[l], call.biases[l], l == call.depth - 1 ? out : hidden,
                  false, device);
  }
  return y;
}

Tensor stacked_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& units, const Text& activation) {
  std::vector<Tensor> biases;
  if (bias) biases.push_back(*bias);
  return run(Form::level, x, {weight}, biases, units, Activation::identity,
             activation_of(activation, "activation"));
}

Tensor stacked_unit_linear(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::vector<int64_t>& units,
                           const Text& activation, const Text& out_activation) {
  return run(Form::units, x, weights, biases, units, activation_of(activation, "activation"),
             activation_of(out_activation, "out_activation"));
}

Tensor stacked_linear_grad_input(const Tensor& gradient, const Tensor& weight,
                                 const std::vector<int64_t>& units) {
  const auto layer = linear_layer(units, 1);
  const Stack& stack = layer->stack;
  check_linear_grad_input(stack, gradient, weight);
  const Tensor grad = dense(gradient), dense_weight = dense(weight);
  if (grad.numel() == 0) return new_like(grad, with_channels(grad, stack.channels[0]), false);
  const OnDevice device(grad);
  return run_level(*layer, 0, grad, dense_weight.const_data_ptr(), nullptr, Activation::identity,
                   true, device);
}

void run_level_grad_weight(const Layer& layer, int l, const Tensor& grad, const Tensor& x,
                           const Array& grad_weight, const Array& grad_bias, const Context& on) {
  LevelGradWeightCall call{};
  call.x.view = rows_of(x);
  call.grad.view = rows_of(grad);
  call.stride = call.dilation = 1;
  level_grad_weight(layer, l, call, grad_weight, grad_bias, on);
}

std::tuple<Tensor, Tensor> stacked_linear_grad_weight(const Tensor& gradient, const Tensor& input,
                                                      const std::vector<int64_t>& weight_shape,
                                                      const std::vector<int64_t>& units) {
  const auto layer = linear_layer(units, 1);
  const Stack& stack = layer->stack;
  check_linear_grad_weight(stack, gradient, input, weight_shape);
  const Tensor grad = dense(gradient), x = dense(input);
  Tensor grad_weight = new_like(x, weight_shape, false);
  Tensor grad_bias = new_like(x, {stack.channels[1]}, false);
  const OnDevice device(x);
  run_level_grad_weight(*layer, 0, grad, x, array_of(grad_weight), array_of(grad_bias), device);
  return {grad_weight, grad_bias};
}

// Units too wide for shared memory, level by level; the gradient of x.
Tensor backward_by_level(const Layer& layer, const UnitLinearBackwardCall& call, Tensor grad,
                         const Tensor& x, std::vector<Tensor>& grad_weights,
                         std::vector<Tensor>& grad_biases, const Context& on) {
  const int last = layer.stack.depth - 1;
  std::vector<Tensor> inputs{x}, pre_activations;
  for (int l = 0; l < last || (l == last && call.out != Activation::identity); ++l) {
    const Tensor z = run_level(layer, l, inputs.back(), call.weights[l], call.biases[l],
                               Activation::identity, false, on);
    pre_activations.push_back(z);
    if (l == last) break;
    Tensor y = new_like(z, z.sizes().vec(), false);
    activate(call.hidden, z.const_data_ptr(), y.mutable_data_ptr(), z.numel(), on);
    inputs.push_back(y);
  }
  for (int l = last; l >= 0; --l) {
    const Activation name = l == last ? call.out : call.hidden;
    if (name != Activation::identity) {
      Tensor before = new_like(grad, grad.sizes().vec(), false);
      activation_grad(name, pre_activations[size_t(l)].const_data_ptr(), grad.const_data_ptr(),
                      before.mutable_data_ptr(), grad.numel(), on);
      grad = before;
    }
    run_level_grad_weight(layer, l, grad, inputs[size_t(l)], array_of(grad_weights[size_t(l)]),
                          grad_biases.empty() ? Array{} : array_of(grad_biases[size_t(l)]), on);
    grad = run_level(layer, l, grad, call.weights[l], nullptr, Activation::identity, true, on);
  }
  return grad;
}

}  // namespace

// Not of this file alone: tests/emulation/operators.cpp calls it past the dispatcher.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> stacked_unit_linear_backward(
    const Tensor& gradient, const Tensor& input, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const std::vector<int64_t>& units, const Text& activation,
    const Text& out_activation) {
  const auto layer = linear_layer(units, int64_t(weights.size()));
  const Stack& stack = layer->stack;
  check_unit_linear_backward(stack, gradient, input, weights, biases);
  const Tensor grad = dense(gradient), x = dense(input);
  const int64_t rows = x.numel() / stack.channels[0];
  STD_TORCH_CHECK(rows <= kMaxInt, "x: expected at most ", kMaxInt, " rows, got ", rows);
  UnitLinearBackwardCall call{};
  call.rows = int(rows);
  call.depth = stack.depth;
  call.hidden = activation_of(activation, "activation");
  call.out = activation_of(out_activation, "out_activation");
  const std::vector<Tensor> held = dense_parameters(x, weights, biases, call.weights, call.biases);
  Tensor grad_x = new_like(x, x.sizes().vec(), false);
  std::vector<Tensor> grad_weights, grad_biases;
  for (const Tensor& w : weights) grad_weights.push_back(new_like(w, w.sizes().vec(), false));
  for (const Tensor& b : biases) grad_biases.push_back(new_like(x, b.sizes().vec(), false));
  if (rows == 0) {
    for (Tensor& g : grad_weights) torch::stable::zero_(g);
    for (Tensor& g : grad_biases) torch::stable::zero_(g);
    return {grad_x, grad_weights, grad_biases};
  }
  const OnDevice device(x);
  call.x = {x.const_data_ptr(), int(stack.channels[0])};
  call.grad = {grad.const_data_ptr(), int(stack.channels[stack.depth])};
  call.grad_x = {grad_x.const_data_ptr(), int(stack.channels[0])};
  if (!unit_linear_backward(*layer, call, arrays_of(grad_weights), arrays_of(grad_biases),
                            device)) {
    grad_x = backward_by_level(*layer, call, grad, x, grad_weights, grad_biases, device);
  }
  return {grad_x, grad_weights, grad_biases};
}

}  // namespace bunit::gpu

BUNIT_LIBRARY_IMPL(m) {
  m.impl("stacked_linear", TORCH_BOX(&bunit::gpu::stacked_linear));
  m.impl("stacked_unit_linear", TORCH_BOX(&bunit::gpu::stacked_unit_linear));
  m.impl("stacked_unit_linear_backward", TORCH_BOX(&bunit::gpu::stacked_unit_linear_backward));
  m.impl("stacked_linear_grad_input", TORCH_BOX(&bunit::gpu::stacked_linear_grad_input));
  m.impl("stacked_linear_grad_weight", TORCH_BOX(&bunit::gpu::stacked_linear_grad_weight));
}
