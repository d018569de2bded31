// Gradients of stacked_conv2d.

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "backward_plan.h"
#include "check.h"

namespace bunit {
namespace {

Tensor stacked_conv2d_grad_input(const Tensor& grad, const Tensor& weight,
                                 const std::vector<int64_t>& input_size,
                                 const std::vector<int64_t>& units, int64_t stride,
                                 int64_t dilation) {
  const Stack stack = Stack::conv(units, 1);
  check_conv2d_grad_input(stack, grad, weight, input_size, stride, dilation);
  Tensor grad_x = new_output(grad, input_size, output_is_channels_last(grad));
  const Image in = image_of(grad_x), out = image_of(grad);
  BackwardPlan(stack, 0, in, out, &weight, stride, dilation)
      .run(stack.all(), in, out, in, {}, nullptr, nullptr, nullptr);
  return grad_x;
}

std::tuple<Tensor, Tensor> stacked_conv2d_grad_weight(const Tensor& grad, const Tensor& x,
                                                      const std::vector<int64_t>& weight_shape,
                                                      const std::vector<int64_t>& units,
                                                      int64_t stride, int64_t dilation) {
  const Stack stack = Stack::conv(units, 1);
  check_conv2d_grad_weight(stack, grad, x, weight_shape, stride, dilation);
  Tensor grad_weight = new_output(x, weight_shape, false);
  Tensor grad_bias = new_output(x, {stack.channels[1]}, false);
  const Image in = image_of(x), out = image_of(grad);
  BackwardPlan(stack, 0, in, out, nullptr, stride, dilation)
      .run(stack.all(), in, out, {}, {}, &grad_weight, &grad_bias, nullptr);
  return {grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> stacked_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                           const Tensor& weight,
                                                           const std::vector<int64_t>& units,
                                                           int64_t stride, int64_t dilation) {
  const Stack stack = Stack::conv(units, 1);
  check_conv2d_backward(stack, grad, x, weight, stride, dilation);
  Tensor grad_x = new_output(grad, x.sizes().vec(), output_is_channels_last(grad));
  Tensor grad_weight = new_output(x, weight.sizes().vec(), false);
  Tensor grad_bias = new_output(x, {stack.channels[1]}, false);
  const Image in = image_of(x), out = image_of(grad);
  BackwardPlan(stack, 0, in, out, &weight, stride, dilation)
      .run(stack.all(), in, out, image_of(grad_x), {}, &grad_weight, &grad_bias, nullptr);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CPU, m) {
  m.impl("stacked_conv2d_grad_input", TORCH_BOX(&bunit::stacked_conv2d_grad_input));
  m.impl("stacked_conv2d_grad_weight", TORCH_BOX(&bunit::stacked_conv2d_grad_weight));
  m.impl("stacked_conv2d_backward", TORCH_BOX(&bunit::stacked_conv2d_backward));
}
