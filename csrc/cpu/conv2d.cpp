// stacked_conv2d and stacked_unit_conv2d: one level, or all levels, of all units.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "check.h"
#include "forward_plan.h"
#include "text.h"

namespace bunit {
namespace {

Tensor run(Form form, const Tensor& x, const std::vector<Tensor>& weights,
           const std::vector<Tensor>& biases, const std::optional<Tensor>& residual,
           const std::vector<int64_t>& units, const ConvOptions& options, bool shuffle = false) {
  const Stack stack = Stack::conv(units, int64_t(weights.size()), shuffle);
  const LevelSizes sizes =
      check_conv2d(stack, form, x, weights, biases, residual, options.stride, options.dilation);
  const Size size = sizes[size_t(stack.depth)];
  const Image in = image_of(x);
  const ForwardPlan plan(stack, in, weights, biases, options);
  const Tensor y = new_output(x, {x.size(0), stack.channels[stack.depth], size.h, size.w},
                              output_is_channels_last(x));
  Image added{};
  if (residual) {
    added = image_of(*residual);
    added.shuffled = shuffle;
  }
  Image out = image_of(y);
  out.shuffled = shuffle;
  plan.run(stack.all(), in, out, added, {}, Activation::identity, nullptr);
  return y;
}

Tensor stacked_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                      const Text& activation) {
  std::vector<Tensor> biases;
  if (bias) biases.push_back(*bias);
  return run(
      Form::level, x, {weight}, biases, std::nullopt, units,
      {.stride = stride, .dilation = dilation, .out = activation_of(activation, "activation")});
}

Tensor stacked_unit_conv2d(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                           bool shuffle, const Text& activation, const Text& out_activation,
                           const Text& residual_activation) {
  return run(Form::units, x, weights, biases, residual, units,
             {.stride = stride,
              .dilation = dilation,
              .hidden = activation_of(activation, "activation"),
              .out = activation_of(out_activation, "out_activation"),
              .after_residual = activation_of(residual_activation, "residual_activation")},
             shuffle);
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CPU, m) {
  m.impl("stacked_conv2d", TORCH_BOX(&bunit::stacked_conv2d));
  m.impl("stacked_unit_conv2d", TORCH_BOX(&bunit::stacked_unit_conv2d));
}
