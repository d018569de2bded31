// stacked_unit_conv2d_train: every level followed by batch normalisation with the batch's own
// statistics. A level's statistics need all of its output, so each level is a pass of its own; it
// normalises and activates the level before it as it loads, and adds up its own statistics as it
// stores.
//
// With `recompute` the first level's output is not kept: its own pass makes the statistics alone,
// the second level's pass goes from the input through both levels, the norm folded into the first,
// and going back it is made again for a few units at a time. The first level of narrow units takes
// less time to make than to write and read, and the pages of a tensor that lasts until the backward
// pass are new ones, which the system has to clear.
//
// The sums of a unit's channels need that unit alone. So going back a thread takes a few units
// through all levels: their gradients between levels are memory that is used again for the next
// units and not a tensor more. (Forward, what is kept is written fastest in the order in which it
// lies: by unit a pass of 64 units 2-4-2, N=128, 32x32, took 75 instead of 56 ms.)

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <deque>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "backward_plan.h"
#include "check.h"
#include "forward_plan.h"
#include "level_norm.h"
#include "pack.h"
#include "pooled_images.h"
#include "text.h"

namespace bunit {
namespace {

Tensor contiguous_like(const Tensor& t, bool channels_last) {
  if (channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  return torch::stable::contiguous(
      t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// `count` levels of the units that `rows` describe, from `level` on, as a stack of their own.
Stack level_stack(const std::vector<int64_t>& rows, int64_t depth, int level, int count = 1,
                  bool shuffle = false) {
  std::vector<int64_t> out;
  for (size_t i = 0; i < rows.size(); i += size_t(depth) + 4) {
    const auto widths = rows.begin() + int64_t(i) + 3 + level;
    out.insert(out.end(), {rows[i], rows[i + 1], rows[i + 2]});
    out.insert(out.end(), widths, widths + count + 1);
  }
  return Stack::conv(out, count, shuffle);
}

// Runs body(c0, c1) for the channels of the layer's output that are the units' own: channels next
// to each other, in a shuffled output the first of all these units, their second, and so on.
void for_each_out_run(const Stack& stack, const UnitRange& units,
                      const std::function<void(int64_t, int64_t)>& body) {
  const int depth = stack.depth;
  const int64_t begin = stack.first_channel(depth, units.first);
  const int64_t end = stack.first_channel(depth, units.last);
  // All are all, in whatever order.
  if (stack.places.empty() || end - begin == stack.channels[depth]) return body(begin, end);
  for (int64_t c = 0, done = 0, count; done < end - begin; ++c, done += count) {
    int64_t first = 0;
    count = 0;
    for (int64_t u = units.first; u < units.last; ++u) {
      const Unit& unit = stack.units[size_t(u)];
      if (c >= unit.widths[depth]) continue;
      if (count++ == 0) first = stack.place(unit.channels[depth] + c);
    }
    body(first, first + count);
  }
}

// Runs body(units) for all units: for `step` of them at a time, each thread its own, or for all at
// once, where they are too few for that, and each pass on all threads. Results are the same.
void for_each_units(const Stack& stack, int64_t step,
                    const std::function<void(const UnitRange&)>& body) {
  const int64_t count = stack.all().last, parts = (count + step - 1) / step;
  if (parts < 2 * num_threads()) return body(stack.all());
  for_each_item(parts,
                [&](int64_t part) { body({part * step, std::min((part + 1) * step, count)}); });
}

// Runs body(n, first, last) over images and groups of the channels [c0, c1).
void for_each_channels(const Image& image, int64_t c0, int64_t c1,
                       const std::function<void(int64_t, int64_t, int64_t)>& body) {
  const int64_t group = std::max<int64_t>(16, 4096 / std::max<int64_t>(1, image.h * image.w));
  const int64_t groups = (c1 - c0 + group - 1) / group;
  for_each_item(image.n * groups, [&](int64_t item) {
    const int64_t first = c0 + item % groups * group;
    body(item / groups, first, std::min(first + group, c1));
  });
}

// A level's weight and, for its bias, a vector, with the norm after it folded into them.
std::pair<Tensor, Tensor> fold(const Stack& level, const Tensor& weight, const LevelNorm& norm,
                               ScalarType dtype) {
  Tensor folded = torch::stable::empty(weight.sizes(), dtype, std::nullopt, weight.device());
  Tensor bias = torch::stable::empty({level.channels[1]}, dtype, std::nullopt, weight.device());
  const Values<double> values(weight);
  const Narrowed folded_values(folded), biases(bias);
  for (const Unit& unit : level.units) {
    const int64_t taps = int64_t(unit.widths[0]) * unit.kernel * unit.kernel;
    for (int64_t i = 0; i < taps * unit.widths[1]; ++i) {
      const int64_t at = unit.weights[0] + i;
      folded_values.set(at, values[at] * norm.scale(unit.channels[1] + i / taps));
    }
  }
  for (int64_t c = 0; c < level.channels[1]; ++c) biases.set(c, norm.bias(c));
  return {folded, bias};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> train(
    const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& gammas,
    const std::vector<Tensor>& betas, const std::optional<Tensor>& residual,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation, bool shuffle, double eps,
    bool recompute, const Text& activation, const Text& out_activation,
    const Text& residual_activation) {
  const int depth = int(weights.size());
  const Stack stack = Stack::conv(units, depth, shuffle);
  const LevelSizes sizes = check_unit_conv2d_train(stack, x, weights, gammas, betas, residual,
                                                   stride, dilation, eps, recompute);
  const Activation hidden = activation_of(activation, "activation");
  const Activation last = activation_of(out_activation, "out_activation");
  const Activation after = activation_of(residual_activation, "residual_activation");
  const bool channels_last = output_is_channels_last(x);
  const int64_t total = std::accumulate(stack.channels + 1, stack.channels + depth + 1, int64_t(0));
  Tensor stats = torch::stable::empty({3, total}, stats_type(x), std::nullopt, x.device());
  const Narrowed stat_values(stats);

  std::vector<Tensor> pre_norms;
  std::deque<LevelNorm> norms;
  int64_t first = 0;
  for (int l = 0; l < depth; ++l) {
    const size_t i = size_t(l);
    const Size size = sizes[i + 1];
    const bool kept = l > 0 || !recompute;
    // The second level after one that was not kept begins where that one did.
    const int begin = l == 1 && recompute ? 0 : l;
    const Image in = image_of(begin == 0 ? x : pre_norms.back());
    const bool shuffles = shuffle && l == depth - 1;
    const Stack levels = level_stack(units, depth, begin, l + 1 - begin, shuffles);
    const int64_t channels = levels.channels[levels.depth];
    std::vector<Tensor> own(weights.begin() + begin, weights.begin() + l + 1), biases;
    if (begin < l) {
      const auto [weight, bias] =
          fold(level_stack(units, depth, 0), weights[0], norms[0], stats_type(x));
      own[0] = weight;
      biases = {bias, torch::stable::new_zeros(stats, {channels})};
    }
    const ForwardPlan plan(levels, in, own, biases,
                           {.stride = begin == 0 ? stride : 1,
                            .dilation = dilation,
                            .hidden = hidden,
                            .pass = Pass::with_norms});
    const Tensor z = new_output(
        x,
        kept ? std::vector<int64_t>{x.size(0), channels, size.h, size.w} : std::vector<int64_t>{0},
        kept && channels_last);
    Image out =
        kept ? image_of(z) : Image{nullptr, scalar_of(x), x.size(0), channels, size.h, size.w};
    out.shuffled = shuffles;
    std::vector<Moments> moments(static_cast<size_t>(channels));
    plan.run(levels.all(), in, out, {}, begin == 0 ? Norm{} : norms.back().norm(), hidden,
             &moments);
    pre_norms.push_back(z);
    norms.emplace_back(gammas[i], betas[i], scalar_of(x));
    for (int64_t c = 0; c < channels; ++c) {
      const Moments& m = moments[size_t(c)];
      const double inv_std = 1 / std::sqrt(m.m2 / m.count + eps);
      norms.back().set(c, levels.place(c), m.mean, inv_std);
      stat_values.set(first + c, m.mean);
      stat_values.set(total + first + c, inv_std);
      stat_values.set(2 * total + first + c, m.m2 / (m.count - 1));
    }
    first += channels;
  }

  const Tensor& z = pre_norms.back();
  const Tensor y = new_output(x, {z.size(0), z.size(1), z.size(2), z.size(3)}, channels_last);
  AffineCall call{image_of(z),
                  image_of(y),
                  {},
                  norms.back().norm(),
                  last,
                  after,
                  !channels_last && goes_around_caches(image_of(y), z.size(2) * z.size(3))};
  Tensor added = y;
  if (residual) {
    added = contiguous_like(*residual, channels_last);
    call.residual = image_of(added);
  }
  const auto affine = kernels().affine[compute_index(scalar_of(x))];
  for_each_channels(call.z, 0, call.z.c,
                    [&](int64_t n, int64_t c0, int64_t c1) { affine(call, n, c0, c1); });
  return {y, pre_norms, stats};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> train_backward(
    const Tensor& gradient, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
    const std::vector<Tensor>& given_pre_norms, const Tensor& stats,
    const std::vector<int64_t>& units, int64_t stride, int64_t dilation, bool shuffle,
    const Text& activation, const Text& out_activation) {
  const int depth = int(weights.size());
  const Stack stack = Stack::conv(units, depth, shuffle);
  const LevelSizes sizes = check_unit_conv2d_train_backward(
      stack, gradient, x, weights, gammas, betas, given_pre_norms, stats, stride, dilation);
  const Scalar dtype = scalar_of(x);
  const Activation hidden = activation_of(activation, "activation");
  const Activation final = activation_of(out_activation, "out_activation");
  const int64_t total = std::accumulate(stack.channels + 1, stack.channels + depth + 1, int64_t(0));
  const bool channels_last = output_is_channels_last(given_pre_norms.back());
  std::deque<Stack> levels;
  for (int l = 0; l < depth; ++l) {
    levels.push_back(level_stack(units, depth, l, 1, shuffle && l == depth - 1));
  }
  std::optional<ForwardPlan> again;  // of the first level, where its output was not kept
  if (is_recomputed(given_pre_norms)) {
    again.emplace(levels[0], image_of(x), std::vector<Tensor>{weights[0]}, std::vector<Tensor>{},
                  ConvOptions{.stride = stride, .dilation = dilation, .pass = Pass::with_norms});
  }
  std::vector<Tensor> pre_norms;  // as train() made them, whatever became of their strides
  std::vector<Image> zs;
  for (const Tensor& z : given_pre_norms) {
    if (again && zs.empty()) {
      zs.push_back(dense_image(dtype, x.size(0), levels[0].channels[1], sizes[1].h, sizes[1].w,
                               channels_last));
    } else {
      pre_norms.push_back(contiguous_like(z, channels_last));
      zs.push_back(image_of(pre_norms.back()));
    }
  }
  zs.back().shuffled = shuffle;
  const Values<double> stat_values(stats);
  std::deque<LevelNorm> norms;
  std::deque<ChannelRows> means;  // of g and of g * zhat, over a channel's values
  std::deque<BackwardPlan> plans;
  std::vector<Tensor> grad_weights;
  std::vector<int64_t> firsts{0};
  const Tensor grad = contiguous_like(gradient, channels_last);
  Image grad_out = image_of(grad);
  grad_out.shuffled = shuffle;
  int64_t step = 1;
  for (int l = 0; l < depth; ++l) {
    const size_t i = size_t(l);
    norms.emplace_back(gammas[i], betas[i], dtype);
    means.emplace_back(2, size_t(levels[i].channels[1]), dtype);
    for (int64_t c = 0; c < levels[i].channels[1]; ++c) {
      norms[i].set(c, c, stat_values[firsts[i] + c], stat_values[total + firsts[i] + c]);
    }
    firsts.push_back(firsts[i] + levels[i].channels[1]);
    // The gradient of a hidden level's output will lie as that output does.
    plans.emplace_back(levels[i], 0, l == 0 ? image_of(x) : zs[i - 1],
                       l == depth - 1 ? grad_out : zs[i], &weights[i], l == 0 ? stride : 1,
                       dilation, Pass::with_norms);
    step = std::lcm(step, plans[i].group());
    grad_weights.push_back(torch::stable::empty(weights[i].sizes(), weights[i].scalar_type(),
                                                std::nullopt, x.device()));
  }
  Tensor grad_affine = torch::stable::empty({2, total}, stats_type(x), std::nullopt, x.device());
  const Narrowed affine_values(grad_affine);
  const Tensor grad_x =
      new_output(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, output_is_channels_last(x));

  if (again) step = std::lcm(step, again->group(image_of(x), channels_last));

  const Image last = zs.back();
  LevelNorm last_norm(gammas.back(), betas.back(), dtype);  // in the order of `last`
  for (int64_t c = 0; c < last.c; ++c) {
    const int64_t i = firsts[size_t(depth) - 1] + c;
    last_norm.set(c, stack.place(c), stat_values[i], stat_values[total + i]);
  }
  std::vector<double> parts(size_t(last.n * last.c * 2));
  const ReduceCall reduce_call{grad_out, last,        last_norm.norm(), last_norm.inv_std(),
                               final,    parts.data()};
  const auto reduce = kernels().reduce[compute_index(dtype)];
  Pool pool;
  for_each_units(stack, step, [&](const UnitRange& own) {
    const int64_t begin = stack.first_channel(depth, own.first);
    const int64_t end = stack.first_channel(depth, own.last);
    for_each_out_run(stack, own, [&](int64_t first, int64_t behind) {
      for_each_channels(last, first, behind,
                        [&](int64_t n, int64_t c0, int64_t c1) { reduce(reduce_call, n, c0, c1); });
    });
    std::vector<double> sums(size_t(2 * (end - begin)));  // of g and g * zhat
    for (int64_t n = 0; n < last.n; ++n) {
      for (int64_t c = begin; c < end; ++c) {
        const double* part = parts.data() + 2 * (n * last.c + stack.place(c));
        for (int k = 0; k < 2; ++k) sums[size_t(2 * (c - begin) + k)] += part[k];
      }
    }
    std::optional<ImageOf> between;  // the gradient on its way from level to level
    std::optional<ImageOf> first;    // the first level's output, made again
    if (again) {
      first.emplace(pool, zs[0], levels[0].first_channel(1, own.first),
                    levels[0].first_channel(1, own.last), channels_last);
      again->run(own, image_of(x), first->image(), {}, {}, Activation::identity, nullptr);
    }
    const auto z_of = [&](int l) { return l == 0 && first ? first->image() : zs[size_t(l)]; };
    for (int l = depth - 1; l >= 0; --l) {
      const size_t i = size_t(l);
      const Image z = z_of(l);
      const Image in = l == 0 ? image_of(x) : z_of(l - 1);
      const double count = double(z.n * z.h * z.w);
      int64_t c = levels[i].first_channel(1, own.first);
      for (size_t k = 0; k < sums.size(); k += 2, ++c) {
        affine_values.set(total + firsts[i] + c, sums[k]);
        affine_values.set(firsts[i] + c, sums[k + 1]);
        means[i].set(0, size_t(c), sums[k] / count);
        means[i].set(1, size_t(c), sums[k + 1] / count);
      }
      BackwardNorms around{};
      around.z = z;
      around.out = norms[i].norm();
      around.out_activation = l == depth - 1 ? final : Activation::identity;
      around.inv_std = norms[i].inv_std();
      around.mean_g = means[i].row(0);
      around.mean_gz = means[i].row(1);
      std::optional<ImageOf> next;
      if (l > 0) {
        around.in = norms[i - 1].norm();
        around.in_activation = hidden;
        around.in_inv_std = norms[i - 1].inv_std();
        next.emplace(pool, in, levels[i].first_channel(0, own.first),
                     levels[i].first_channel(0, own.last), channels_last);
      }
      plans[i].run(own, in, between ? between->image() : grad_out,
                   next ? next->image() : image_of(grad_x), around, &grad_weights[i], nullptr,
                   l > 0 ? &sums : nullptr);
      between = std::move(next);
    }
  });
  return {grad_x, grad_weights, grad_affine};
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CPU, m) {
  m.impl("stacked_unit_conv2d_train", TORCH_BOX(&bunit::train));
  m.impl("stacked_unit_conv2d_train_backward", TORCH_BOX(&bunit::train_backward));
}
