// stacked_unit_conv2d_train: every level followed by batch normalisation with the batch's own
// statistics (twin of csrc/cpu/conv2d_train.cpp).
//
// Each of a level's passes needs sums over all of what the one before made, so that what goes
// through device memory is counted in whole images. For units c0-c1-c2 at stride 1, values read (r)
// and written (w) a pixel, halos of tiles not counted (13 % of what a 32x32 tile of 3x3 kernels
// reads), and in brackets those of 2-4-2:
//
//   forward   level 1: x r c0, z1 w c1                                          [6]
//             level 2: z1 r c1, through norm and activation; z2 w c2            [6]
//             last norm, activation: z2 r c2, y w c2; a residual, r c2 more     [4]
//   backward  sums for the last norm: grad r c2, z2 r c2                        [4]
//             level 2, both gradients and the sums for the norm before it:
//               grad and z2 r 2 c2, z1 r c1; gradient w c1                      [12]
//             level 1, both gradients: its gradient and z1 r 2 c1, x r c0;
//               gradient of x w c0                                              [12]
//
// Forward c0 + 2 c1 + 3 c2 [16], backward 2 c0 + 4 c1 + 4 c2 [28]. That is the least as long as
// every pre-norm value is kept and none computed again: a barrier over the whole grid lies between
// any two of these passes. (Computing z1 again instead of storing it would save 2 c1 of the forward
// pass and cost 2 c0 and level 1's arithmetic, and more of both in the backward pass.) Gradients
// taken one by one, with a pass of sums for every norm, were 2 c0 + 8 c1 + 6 c2 [48].
//
// A first level of a stride takes its two gradients in two passes (reading its gradient and z once
// more), and so do units too wide for shared memory.

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "check.h"
#include "cuda/level_backward.h"
#include "cuda/level_conv.h"
#include "cuda/level_grad_weight.h"
#include "cuda/norms.h"
#include "cuda/tensors.h"
#include "text.h"

namespace bunit::gpu {
namespace {

// Batch statistics and parameters of all levels' norms, as the kernels take them.
class Norms {
 public:
  Norms(const Stack& stack, const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
        const Tensor& stats)
      : stats_(static_cast<float*>(stats.mutable_data_ptr())), total_(stats.size(1)) {
    int64_t first = 0;
    for (int l = 0; l < stack.depth; ++l) {
      gammas_.push_back(as_float(gammas[size_t(l)]));
      betas_.push_back(as_float(betas[size_t(l)]));
      firsts_.push_back(first);
      first += stack.channels[l + 1];
    }
  }

  DeviceNorm norm(int l) const {
    return {stats(l), static_cast<const float*>(gammas_[size_t(l)].const_data_ptr()),
            static_cast<const float*>(betas_[size_t(l)].const_data_ptr()), stats(l) + total_};
  }
  float* stats(int l) const { return stats_ + first(l); }
  int64_t total() const { return total_; }
  int64_t first(int l) const { return firsts_[size_t(l)]; }

 private:
  float* stats_;  // [3, total]
  int64_t total_;
  std::vector<Tensor> gammas_, betas_;
  std::vector<int64_t> firsts_;
};

std::tuple<Tensor, std::vector<Tensor>, Tensor> train(
    const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& gammas,
    const std::vector<Tensor>& betas, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation, bool shuffle, double eps,
    bool recompute, const Text& activation, const Text& out_activation,
    const Text& residual_activation) {
  check_unshuffled(shuffle);
  STD_TORCH_CHECK(!recompute,
                  "recompute: expected false, got true: CUDA kernels keep what they made");
  const int depth = int(weights.size());
  const auto layer = conv_layer(units, depth);
  const Stack& stack = layer->stack;
  const LevelSizes sizes = check_unit_conv2d_train(stack, x, weights, gammas, betas, residual,
                                                   stride, dilation, eps, recompute);
  const Activation hidden = activation_of(activation, "activation");
  const Activation last = activation_of(out_activation, "out_activation");
  const Activation after = activation_of(residual_activation, "residual_activation");
  const OnDevice device(x);
  const bool channels_last = output_is_channels_last(x);
  int64_t total = 0;
  for (int l = 0; l < depth; ++l) total += stack.channels[l + 1];
  Tensor stats = new_tensor(x, {3, total}, ScalarType::Float);
  const Norms norms(stack, gammas, betas, stats);

  std::vector<Tensor> pre_norms;
  for (int l = 0; l < depth; ++l) {
    const Tensor dense_weight = dense(weights[size_t(l)]);
    LevelConvCall call{};
    call.x.view = view_of(l == 0 ? x : pre_norms.back());
    if (l > 0) {
      call.x.norm = norms.norm(l - 1);
      call.x.activation = hidden;
    }
    call.stride = l == 0 ? int(stride) : 1;
    call.dilation = int(dilation);
    const Size size = sizes[size_t(l) + 1];
    pre_norms.push_back(
        new_like(x, {x.size(0), stack.channels[l + 1], size.h, size.w}, channels_last));
    call.y = view_of(pre_norms.back());
    call.weight = dense_weight.const_data_ptr();
    const int64_t parts = level_conv_parts(*layer, l, call);
    Tensor moments = new_tensor(x, {parts, stack.channels[l + 1], 3}, ScalarType::Float);
    call.moments = reinterpret_cast<Moments*>(floats(moments));
    level_conv(*layer, l, call, device);
    finish_moments(call.moments, parts, int(stack.channels[l + 1]), eps, norms.stats(l), total,
                   device);
  }

  const Tensor& z = pre_norms.back();
  const Tensor y = new_like(x, {z.size(0), z.size(1), z.size(2), z.size(3)}, channels_last);
  const View added = residual ? view_of(*residual) : View{};
  apply_norm(view_of(z), view_of(y), added, norms.norm(depth - 1), last, after, device);
  return {y, pre_norms, stats};
}

// Both gradients of a level that level_backward does not take: of the weight in one pass, of the
// input in another.
void two_passes(const Layer& layer, int level, int64_t stride, const LevelBackwardCall& call,
                const Array& grad_weight, const NormGrads& before, const Context& on) {
  LevelGradWeightCall of_weight{call.x, call.grad, int(stride), call.dilation};
  level_grad_weight(layer, level, of_weight, grad_weight, {}, on);
  LevelConvCall of_input{};
  of_input.x = call.grad;
  of_input.y = call.grad_x;
  of_input.weight = call.weight;
  of_input.stride = int(stride);
  of_input.dilation = call.dilation;
  of_input.transposed = true;
  if (!call.x.norm.mean) {
    level_conv(layer, level, of_input, on);
    return;
  }
  of_input.before = call.x;
  const int64_t parts = level_conv_parts(layer, level, of_input);
  float* const sums = on.workspace(parts * call.x.view.c * 2);
  of_input.sums = reinterpret_cast<float2*>(sums);
  level_conv(layer, level, of_input, on);
  finish_sums({sums, parts, call.x.view.c, before}, {}, {}, on);
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> train_backward(
    const Tensor& gradient, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
    const std::vector<Tensor>& pre_norms, const Tensor& given_stats,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation, bool shuffle,
    const Text& activation, const Text& out_activation) {
  check_unshuffled(shuffle);
  const int depth = int(weights.size());
  const auto layer = conv_layer(units, depth);
  const Stack& stack = layer->stack;
  check_unit_conv2d_train_backward(stack, gradient, x, weights, gammas, betas, pre_norms,
                                   given_stats, stride, dilation);
  STD_TORCH_CHECK(!is_recomputed(pre_norms),
                  "pre_norms[0]: expected the first level's output, "
                  "got an empty tensor: recompute is for the CPU");
  const Activation hidden = activation_of(activation, "activation");
  const Activation final = activation_of(out_activation, "out_activation");
  const OnDevice device(x);
  const Tensor stats = as_float(given_stats);
  const Norms norms(stack, gammas, betas, stats);
  const int64_t total = norms.total();
  Tensor grad_affine = new_tensor(x, {2, total}, ScalarType::Float);
  Tensor means = new_tensor(x, {2, total}, ScalarType::Float);
  const auto norm_grads = [&](int l) -> NormGrads {
    float *affine = floats(grad_affine) + norms.first(l), *mean = floats(means) + norms.first(l);
    const Tensor& z = pre_norms[size_t(l)];
    return {affine, affine + total, mean, mean + total,
            double(z.size(0)) * double(z.size(2)) * double(z.size(3))};
  };

  const int last = depth - 1;
  sum_grads(view_of(gradient), view_of(pre_norms.back()), norms.norm(last), final, norm_grads(last),
            device);
  Tensor grad = gradient;
  std::vector<Tensor> grad_weights(weights);
  for (int l = last; l >= 0; --l) {
    const size_t i = size_t(l);
    const Tensor& input = l == 0 ? x : pre_norms[i - 1];
    const Tensor grad_in = new_like(x, {input.size(0), input.size(1), input.size(2), input.size(3)},
                                    output_is_channels_last(input));
    const Tensor dense_weight = dense(weights[i]);
    LevelBackwardCall call{};
    call.grad.view = view_of(grad);
    call.grad.z = view_of(pre_norms[i]);
    call.grad.norm = norms.norm(l);
    // What a level leaves for the one before it has gone through the activation between.
    call.grad.activation = l == last ? final : Activation::identity;
    call.grad.mean_g = norm_grads(l).mean_g;
    call.grad.mean_gz = norm_grads(l).mean_gz;
    call.x.view = view_of(input);
    NormGrads before{};
    if (l > 0) {
      call.x.norm = norms.norm(l - 1);
      call.x.activation = hidden;
      before = norm_grads(l - 1);
    }
    call.grad_x = view_of(grad_in);
    call.weight = dense_weight.const_data_ptr();
    call.dilation = int(dilation);
    grad_weights[i] = new_tensor(x, weights[i].sizes().vec(), weights[i].scalar_type());
    const int64_t own_stride = l == 0 ? stride : 1;
    if (own_stride != 1 ||
        !level_backward(*layer, l, call, array_of(grad_weights[i]), before, device)) {
      two_passes(*layer, l, own_stride, call, array_of(grad_weights[i]), before, device);
    }
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
