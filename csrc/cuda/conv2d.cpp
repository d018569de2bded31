// Operators on convolutional units without batch statistics.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/level_conv.h"
#include "cuda/level_grad_weight.h"
#include "cuda/norms.h"
#include "cuda/tensors.h"
#include "cuda/unit_forward.h"
#include "text.h"

namespace bunit::gpu {
namespace {

void check_input(const Tensor& x, int64_t channels, const char* what) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == channels, "expected ", what, " [N, ", channels,
                  ", H, W]");
}

void check_level(const Stack& stack, int level, const Tensor& weight, const Tensor& x) {
  STD_TORCH_CHECK(weight.numel() == stack.weight_sizes[level], "the weight of level ", level + 1,
                  " has ", weight.numel(), " elements, expected ", stack.weight_sizes[level]);
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "weights must have the input's dtype");
}

struct Size {
  int64_t h, w;
};

// Of the output of one level; all units of a stack give the same.
Size output_size(const Stack& stack, Size in, int64_t stride, int64_t dilation) {
  Size out{};
  for (const Unit& unit : stack.units) {
    out = {conv_size(in.h, unit.kernel, unit.pad, stride, dilation),
           conv_size(in.w, unit.kernel, unit.pad, stride, dilation)};
    STD_TORCH_CHECK(out.h >= 1 && out.w >= 1, "a level gets ", in.h, "x", in.w,
                    " pixels, too few for its kernel of ", unit.kernel);
  }
  return out;
}

// Level by level, for units whose tiles do not fit shared memory.
void run_levels(const Layer& layer, const UnitForwardCall& call, const Tensor& x, const Tensor& y,
                const Context& on) {
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
      const Size size = output_size(layer.stack, {from.h, from.w}, stride, call.dilation);
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

Tensor run(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
           const std::optional<Tensor>& residual, const std::vector<int64_t>& units, int64_t stride,
           int64_t dilation, Activation hidden, Activation out, Activation after_residual) {
  const auto layer = conv_layer(units, int64_t(weights.size()));
  const Stack& stack = layer->stack;
  check_input(x, stack.channels[0], "an input");
  STD_TORCH_CHECK(biases.empty() || biases.size() == weights.size(), weights.size(),
                  " weights but ", biases.size(), " biases");
  UnitForwardCall call{};
  call.depth = stack.depth;
  call.stride = int(stride);
  call.dilation = int(dilation);
  call.hidden = hidden;
  call.out = out;
  call.after_residual = after_residual;
  Size size{x.size(2), x.size(3)};
  std::vector<Tensor> held;  // as long as kernels are being launched
  for (int l = 0; l < stack.depth; ++l) {
    check_level(stack, l, weights[size_t(l)], x);
    size = output_size(stack, size, l == 0 ? stride : 1, dilation);
    held.push_back(dense(weights[size_t(l)]));
    call.weights[l] = held.back().const_data_ptr();
    if (biases.empty()) continue;
    STD_TORCH_CHECK(biases[size_t(l)].numel() == stack.channels[l + 1], "the bias of level ", l + 1,
                    " has ", biases[size_t(l)].numel(), " elements, expected ",
                    stack.channels[l + 1]);
    held.push_back(with_dtype(biases[size_t(l)], x.scalar_type()));
    call.biases[l] = held.back().const_data_ptr();
  }
  const Tensor y = new_like(x, {x.size(0), stack.channels[stack.depth], size.h, size.w},
                            output_is_channels_last(x));
  call.x = view_of(x);
  call.y = view_of(y);
  if (residual) {
    for (int i = 0; i < 4; ++i) {
      STD_TORCH_CHECK(residual->dim() == 4 && residual->size(i) == y.size(i) &&
                          residual->scalar_type() == y.scalar_type(),
                      "the residual must have the output's shape and dtype");
    }
    call.residual = view_of(*residual);
  }
  if (y.numel() == 0) return y;
  const OnDevice device(x);
  if (!unit_forward(*layer, call, device)) run_levels(*layer, call, x, y, device);
  return y;
}

Tensor stacked_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                      const Text& activation) {
  std::vector<Tensor> biases;
  if (bias) biases.push_back(*bias);
  return run(x, {weight}, biases, std::nullopt, units, stride, dilation, Activation::identity,
             activation_of(activation), Activation::identity);
}

Tensor stacked_unit_conv2d(const Tensor& x, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::optional<Tensor>& residual,
                           const std::vector<int64_t>& units, int64_t stride, int64_t dilation,
                           bool shuffle, const Text& activation, const Text& out_activation,
                           const Text& residual_activation) {
  check_unshuffled(shuffle);
  return run(x, weights, biases, residual, units, stride, dilation, activation_of(activation),
             activation_of(out_activation), activation_of(residual_activation));
}

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

Tensor stacked_conv2d_grad_input(const Tensor& grad, const Tensor& weight,
                                 const std::vector<int64_t>& input_size,
                                 const std::vector<int64_t>& units, int64_t stride,
                                 int64_t dilation) {
  const auto layer = conv_layer(units, 1);
  const Stack& stack = layer->stack;
  check_input(grad, stack.channels[1], "a gradient");
  check_level(stack, 0, weight, grad);
  STD_TORCH_CHECK(
      input_size.size() == 4 && input_size[1] == stack.channels[0] && input_size[0] == grad.size(0),
      "sizes of gradient and input do not fit the units");
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
  level_conv(*layer, 0, call, device);
  return grad_x;
}

std::tuple<Tensor, Tensor> stacked_conv2d_grad_weight(const Tensor& grad, const Tensor& x,
                                                      const std::vector<int64_t>& weight_shape,
                                                      const std::vector<int64_t>& units,
                                                      int64_t stride, int64_t dilation) {
  const auto layer = conv_layer(units, 1);
  const Stack& stack = layer->stack;
  check_input(x, stack.channels[0], "an input");
  check_input(grad, stack.channels[1], "a gradient");
  STD_TORCH_CHECK(grad.size(0) == x.size(0) && grad.scalar_type() == x.scalar_type(),
                  "sizes or dtypes of gradient and input do not fit");
  Tensor grad_weight = new_like(x, weight_shape, false);
  Tensor grad_bias = new_like(x, {stack.channels[1]}, false);
  STD_TORCH_CHECK(grad_weight.numel() == stack.weight_sizes[0],
                  "the weight's shape does not fit the units");
  const OnDevice device(x);
  LevelGradWeightCall call{};
  call.x.view = view_of(x);
  call.grad.view = view_of(grad);
  call.stride = int(stride);
  call.dilation = int(dilation);
  level_grad_weight(*layer, 0, call, array_of(grad_weight), array_of(grad_bias), device);
  return {grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> stacked_conv2d_backward(const Tensor& grad, const Tensor& x,
                                                           const Tensor& weight,
                                                           const std::vector<int64_t>& units,
                                                           int64_t stride, int64_t dilation) {
  auto [grad_weight, grad_bias] =
      stacked_conv2d_grad_weight(grad, x, sizes_of(weight), units, stride, dilation);
  return {stacked_conv2d_grad_input(grad, weight, sizes_of(x), units, stride, dilation),
          grad_weight, grad_bias};
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
