// Linear units over rows, [..., C] seen as a channels_last image [1, C, rows, 1]. The gradients of
// one level are those of a 1x1 convolution.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "backward_plan.h"
#include "check.h"
#include "linear_plan.h"
#include "text.h"

namespace bunit {
namespace {

std::vector<int64_t> with_channels(const Tensor& x, int64_t channels) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  shape.push_back(channels);
  return shape;
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

Tensor run(Form form, const Tensor& input, const std::vector<Tensor>& weights,
           const std::vector<Tensor>& biases, const std::vector<int64_t>& units, Activation hidden,
           Activation out) {
  const Stack stack = Stack::linear(units, int64_t(weights.size()));
  check_linear(stack, form, input, weights, biases);
  const Tensor x = dense(input);
  const Image in = rows_of(x);
  const Tensor y = new_output(x, with_channels(x, stack.channels[stack.depth]), false);
  if (in.h > 0) LinearPlan(stack, in, weights, biases, hidden, out).forward(in, rows_of(y));
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

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> stacked_unit_linear_backward(
    const Tensor& gradient, const Tensor& input, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const std::vector<int64_t>& units, const Text& activation,
    const Text& out_activation) {
  const Stack stack = Stack::linear(units, int64_t(weights.size()));
  check_unit_linear_backward(stack, gradient, input, weights, biases);
  const Activation hidden = activation_of(activation, "activation");
  const Activation last = activation_of(out_activation, "out_activation");
  const Tensor grad = dense(gradient), x = dense(input);
  const Image out = rows_of(grad), in = rows_of(x);
  const Tensor grad_x = new_output(x, x.sizes().vec(), false);
  std::vector<Tensor> grad_weights, grad_biases;
  for (const Tensor& w : weights) grad_weights.push_back(new_output(w, w.sizes().vec(), false));
  for (const Tensor& b : biases) grad_biases.push_back(new_output(x, b.sizes().vec(), false));
  if (in.h > 0) {
    LinearPlan(stack, in, weights, biases, hidden, last)
        .backward(in, out, rows_of(grad_x), grad_weights, grad_biases);
  } else {
    for (Tensor& g : grad_weights) torch::stable::zero_(g);
    for (Tensor& g : grad_biases) torch::stable::zero_(g);
  }
  return {grad_x, grad_weights, grad_biases};
}

Tensor stacked_linear_grad_input(const Tensor& gradient, const Tensor& weight,
                                 const std::vector<int64_t>& units) {
  const Stack stack = Stack::linear(units, 1);
  check_linear_grad_input(stack, gradient, weight);
  const Tensor grad = dense(gradient);
  const Image out = rows_of(grad);
  const Tensor grad_x = new_output(grad, with_channels(grad, stack.channels[0]), false);
  if (out.h > 0) {
    const Image in = rows_of(grad_x);
    BackwardPlan(stack, 0, in, out, &weight, 1, 1)
        .run(stack.all(), in, out, in, {}, nullptr, nullptr, nullptr);
  }
  return grad_x;
}

std::tuple<Tensor, Tensor> stacked_linear_grad_weight(const Tensor& gradient, const Tensor& input,
                                                      const std::vector<int64_t>& weight_shape,
                                                      const std::vector<int64_t>& units) {
  const Stack stack = Stack::linear(units, 1);
  check_linear_grad_weight(stack, gradient, input, weight_shape);
  const Tensor grad = dense(gradient), x = dense(input);
  const Image out = rows_of(grad), in = rows_of(x);
  Tensor grad_weight = new_output(x, weight_shape, false);
  Tensor grad_bias = new_output(x, {stack.channels[1]}, false);
  if (in.h > 0) {
    BackwardPlan(stack, 0, in, out, nullptr, 1, 1)
        .run(stack.all(), in, out, {}, {}, &grad_weight, &grad_bias, nullptr);
  } else {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  }
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CPU, m) {
  m.impl("stacked_linear", TORCH_BOX(&bunit::stacked_linear));
  m.impl("stacked_unit_linear", TORCH_BOX(&bunit::stacked_unit_linear));
  m.impl("stacked_unit_linear_backward", TORCH_BOX(&bunit::stacked_unit_linear_backward));
  m.impl("stacked_linear_grad_input", TORCH_BOX(&bunit::stacked_linear_grad_input));
  m.impl("stacked_linear_grad_weight", TORCH_BOX(&bunit::stacked_linear_grad_weight));
}
