// stacked_conv2d and stacked_unit_conv2d: one level, or all levels, of all units.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "forward_plan.h"
#include "text.h"

namespace bunit {
namespace {

void check_weights(const Stack& stack, const std::vector<Tensor>& weights,
                   const std::vector<Tensor>& biases, const Tensor& x) {
  STD_TORCH_CHECK(biases.empty() || biases.size() == weights.size(), weights.size(),
                  " weights but ", biases.size(), " biases");
  for (size_t l = 0; l < weights.size(); ++l) {
    STD_TORCH_CHECK(weights[l].numel() == stack.weight_sizes[l], "the weight of level ", l + 1,
                    " has ", weights[l].numel(), " elements, expected ", stack.weight_sizes[l]);
    STD_TORCH_CHECK(weights[l].scalar_type() == x.scalar_type(),
                    "weights must have the input's dtype");
  }
  for (size_t l = 0; l < biases.size(); ++l) {
    STD_TORCH_CHECK(biases[l].numel() == stack.channels[l + 1], "the bias of level ", l + 1,
                    " has ", biases[l].numel(), " elements, expected ", stack.channels[l + 1]);
  }
}

Tensor run(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
           const std::optional<Tensor>& residual, const std::vector<int64_t>& units,
           const ConvOptions& options, bool shuffle = false) {
  const Stack stack = Stack::conv(units, int64_t(weights.size()), shuffle);
  STD_TORCH_CHECK(x.dim() == 4, "expected an input [N, C, H, W], got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(x.size(1) == stack.channels[0], "expected ", stack.channels[0], " channels, got ",
                  x.size(1));
  check_weights(stack, weights, biases, x);
  const Image in = image_of(x);
  const ForwardPlan plan(stack, in, weights, biases, options);
  const Tensor y =
      new_output(x, {x.size(0), stack.channels[stack.depth], plan.out_h(), plan.out_w()},
                 output_is_channels_last(x));
  Image added{};
  if (residual) {
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(residual->dim() == 4 && residual->size(i) == y.size(i),
                      "the residual must have the output's shape");
    }
    STD_TORCH_CHECK(residual->scalar_type() == x.scalar_type(),
                    "the residual must have the input's dtype");
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
  return run(x, {weight}, biases, std::nullopt, units,
             {.stride = stride, .dilation = dilation, .out = activation_of(activation)});
}

Tensor stacked_unit_conv2d(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                           bool shuffle, const Text& activation, const Text& out_activation,
                           const Text& residual_activation) {
  return run(x, weights, biases, residual, units,
             {.stride = stride,
              .dilation = dilation,
              .hidden = activation_of(activation),
              .out = activation_of(out_activation),
              .after_residual = activation_of(residual_activation)},
             shuffle);
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CPU, m) {
  m.impl("stacked_conv2d", TORCH_BOX(&bunit::stacked_conv2d));
  m.impl("stacked_unit_conv2d", TORCH_BOX(&bunit::stacked_unit_conv2d));
}
