// What operators are given, checked before anything is computed or allocated, on the CPU and on
// CUDA: sizes, dtypes, devices, stride and dilation. A refusal is a RuntimeError that names the
// argument, what was expected and what came. Rows of units are checked where they are read
// (cpu/stack.h). Each function takes time with the rows of units, not with the units.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "conv_size.h"
#include "cpu/stack.h"
#include "tensor_traits.h"

namespace bunit {

constexpr int64_t kMaxStride = 1024;
constexpr int64_t kMaxDilation = kMaxKernel;

// An argument, or one of a list of them.
struct Argument {
  const char* name;
  int64_t index = -1;

  std::string text() const {
    return index < 0 ? std::string(name) : std::string(name) + "[" + std::to_string(index) + "]";
  }
};

// How operators call a level's weight and bias: level operators take one of each, others a list.
enum class Form { level, units };
inline Argument argument(Form form, const char* one, const char* several, size_t index) {
  return form == Form::level ? Argument{one} : Argument{several, int64_t(index)};
}

using Shape = std::vector<int64_t>;

inline std::string text_of(const int64_t* sizes, size_t count) {
  std::string text = "[";
  for (size_t i = 0; i < count; ++i) {
    text += (i > 0 ? ", " : "") + (sizes[i] < 0 ? std::string("...") : std::to_string(sizes[i]));
  }
  return text + "]";
}
inline std::string text_of(const Shape& shape) { return text_of(shape.data(), shape.size()); }
inline std::string text_of_sizes(const Tensor& t) {
  return text_of(t.sizes().data(), t.sizes().size());
}
inline std::string text_of_device(const Tensor& t) {
  return t.is_cpu()    ? "the CPU"
         : t.is_cuda() ? "CUDA device " + std::to_string(t.get_device_index())
                       : "another device";
}

inline void check_device(const Argument& a, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.defined(), a.text(), ": expected a tensor, got an undefined one");
  STD_TORCH_CHECK(t.is_cpu() == like.is_cpu() && t.is_cuda() == like.is_cuda() &&
                      (t.is_cpu() || t.get_device_index() == like.get_device_index()),
                  a.text(), ": expected a tensor on ", text_of_device(like), ", got one on ",
                  text_of_device(t));
}

// On the device of `like`, of its dtype.
inline void check_like(const Argument& a, const Tensor& t, const Tensor& like) {
  check_device(a, t, like);
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), a.text(), ": expected dtype ",
                  like.scalar_type(), ", got ", t.scalar_type());
}

inline void check_dtype(const Argument& a, const Tensor& t) {
  STD_TORCH_CHECK(scalar_of(t.scalar_type()), a.text(),
                  ": expected float32, float64, bfloat16 or float16, got ", t.scalar_type());
}

// The tensor that the others must be like.
inline void check_first(const Argument& a, const Tensor& t) {
  STD_TORCH_CHECK(t.defined(), a.text(), ": expected a tensor, got an undefined one");
  check_dtype(a, t);
}

inline void check_numel(const Argument& a, const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(t.numel() == count, a.text(), ": expected ", count,
                  " elements to fit the units, got ", t.numel());
}

// What is converted: on the device of `like`, of any dtype that kernels take.
inline void check_values(const Argument& a, const Tensor& t, const Tensor& like, int64_t count) {
  check_device(a, t, like);
  check_dtype(a, t);
  check_numel(a, t, count);
}

// Sizes of which a negative one may be any.
inline void check_sizes(const Argument& a, const Tensor& t, const Shape& expected) {
  const auto sizes = t.sizes();
  bool same = sizes.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) {
    same = expected[i] < 0 || sizes[i] == expected[i];
  }
  STD_TORCH_CHECK(same, a.text(), ": expected a tensor of shape ", text_of(expected), ", got ",
                  text_of_sizes(t));
}

inline void check_count(const char* name, size_t count, size_t levels, bool or_none) {
  STD_TORCH_CHECK(count == levels || (or_none && count == 0), name, ": expected ",
                  or_none ? "none or " : "", levels, " tensors, one a level, got ", count);
}

// Sizes that a gradient is to have.
inline void check_weight_shape(const Shape& shape, int64_t count) {
  int64_t elements = 1;
  bool fits = true;
  for (int64_t size : shape) {
    fits = fits && size >= 1 && !__builtin_mul_overflow(elements, size, &elements);
  }
  STD_TORCH_CHECK(fits && elements == count, "weight_shape: expected a shape of ", count,
                  " elements to fit the units, got ", text_of(shape));
}

struct Size {
  int64_t h, w;
};
// Of the images between the levels: the input's, and what each level makes of it.
using LevelSizes = std::array<Size, kMaxDepth + 1>;

// Of the images, which are the same for all units; what is past int64 when buffers are planned is
// refused, too.
inline LevelSizes check_geometry(const Stack& stack, const char* input, Size in, int64_t stride,
                                 int64_t dilation) {
  STD_TORCH_CHECK(stride >= 1 && stride <= kMaxStride, "stride: expected 1 to ", kMaxStride,
                  ", got ", stride);
  STD_TORCH_CHECK(dilation >= 1 && dilation <= kMaxDilation, "dilation: expected 1 to ",
                  kMaxDilation, ", got ", dilation);
  STD_TORCH_CHECK(in.h >= 1 && in.h <= kMaxInt && in.w >= 1 && in.w <= kMaxInt, input,
                  ": expected a height and a width of 1 to ", kMaxInt, ", got ", in.h, "x", in.w);
  LevelSizes sizes{in};
  int64_t pad = 0;
  for (const int64_t first : stack.first_of_kind) {
    const Unit& unit = stack.units[size_t(first)];
    Size size = in;
    for (int l = 0; l < stack.depth; ++l) {
      const auto made = [&](int64_t from) {
        return conv_size<int64_t>(from, unit.kernel, unit.pad, l == 0 ? stride : 1, dilation);
      };
      const Size out{made(size.h), made(size.w)};
      STD_TORCH_CHECK(out.h >= 1 && out.w >= 1, "units: level ", l + 1, " gets ", size.h, "x",
                      size.w, " pixels, too few for a kernel of ", unit.kernel, " with padding ",
                      unit.pad, " and dilation ", dilation);
      Size& expected = sizes[size_t(l) + 1];
      if (first == 0) expected = out;
      STD_TORCH_CHECK(out.h == expected.h && out.w == expected.w,
                      "units: expected outputs of one size, got ", expected.h, "x", expected.w,
                      " and ", out.h, "x", out.w, " after level ", l + 1);
      size = out;
    }
    pad = std::max<int64_t>(pad, unit.pad);
  }
  double channels = 0;
  for (int l = 0; l <= stack.depth; ++l) channels += double(stack.channels[l]);
  const double pixels = double(in.h + 2 * pad) * double(in.w + 2 * pad) * double(stride * stride);
  STD_TORCH_CHECK(channels * pixels < 0x1p50, input, ": images of ", in.h, "x", in.w,
                  " are too large for ", stack.channels[0], " channels, padding ", pad,
                  " and stride ", stride);
  return sizes;
}

inline void check_parameters(const Stack& stack, Form form, const Tensor& x,
                             const std::vector<Tensor>& weights,
                             const std::vector<Tensor>& biases) {
  check_count("biases", biases.size(), weights.size(), true);
  for (size_t l = 0; l < weights.size(); ++l) {
    const Argument weight = argument(form, "weight", "weights", l);
    check_like(weight, weights[l], x);
    check_numel(weight, weights[l], stack.weight_sizes[l]);
    if (biases.empty()) continue;
    check_values(argument(form, "bias", "biases", l), biases[l], x, stack.channels[l + 1]);
  }
}

inline void check_image(const Argument& a, const Tensor& t, int64_t channels) {
  check_sizes(a, t, {-1, channels, -1, -1});
}

// --- convolutions ------------------------------------------------------------------------------

inline void check_residual(const std::optional<Tensor>& residual, const Tensor& x,
                           const Shape& expected) {
  if (!residual) return;
  check_like({"residual"}, *residual, x);
  check_sizes({"residual"}, *residual, expected);
}

// Forward of one level or of whole units, without batch statistics.
inline LevelSizes check_conv2d(const Stack& stack, Form form, const Tensor& x,
                               const std::vector<Tensor>& weights,
                               const std::vector<Tensor>& biases,
                               const std::optional<Tensor>& residual, int64_t stride,
                               int64_t dilation) {
  check_first({"x"}, x);
  check_image({"x"}, x, stack.channels[0]);
  check_parameters(stack, form, x, weights, biases);
  const LevelSizes sizes = check_geometry(stack, "x", {x.size(2), x.size(3)}, stride, dilation);
  const Size out = sizes[size_t(stack.depth)];
  check_residual(residual, x, {x.size(0), stack.channels[stack.depth], out.h, out.w});
  return sizes;
}

// A level's gradient `grad` of the output for an input of some size.
inline void check_conv2d_grad(const Stack& stack, const char* input, const Shape& input_size,
                              const Tensor& grad, int64_t stride, int64_t dilation) {
  const Size in{input_size[2], input_size[3]};
  const Size out = check_geometry(stack, input, in, stride, dilation)[1];
  check_sizes({"grad"}, grad, {input_size[0], stack.channels[1], out.h, out.w});
}

inline void check_conv2d_grad_input(const Stack& stack, const Tensor& grad, const Tensor& weight,
                                    const Shape& input_size, int64_t stride, int64_t dilation) {
  check_first({"grad"}, grad);
  check_image({"grad"}, grad, stack.channels[1]);
  check_like({"weight"}, weight, grad);
  check_numel({"weight"}, weight, stack.weight_sizes[0]);
  STD_TORCH_CHECK(
      input_size.size() == 4 && input_size[0] == grad.size(0) && input_size[1] == stack.channels[0],
      "input_size: expected [", grad.size(0), ", ", stack.channels[0], ", H, W], got ",
      text_of(input_size));
  check_conv2d_grad(stack, "input_size", input_size, grad, stride, dilation);
}

inline void check_conv2d_grad_weight(const Stack& stack, const Tensor& grad, const Tensor& x,
                                     const Shape& weight_shape, int64_t stride, int64_t dilation) {
  check_first({"x"}, x);
  check_image({"x"}, x, stack.channels[0]);
  check_like({"grad"}, grad, x);
  check_weight_shape(weight_shape, stack.weight_sizes[0]);
  check_conv2d_grad(stack, "x", x.sizes().vec(), grad, stride, dilation);
}

inline void check_conv2d_backward(const Stack& stack, const Tensor& grad, const Tensor& x,
                                  const Tensor& weight, int64_t stride, int64_t dilation) {
  check_first({"x"}, x);
  check_image({"x"}, x, stack.channels[0]);
  check_like({"grad"}, grad, x);
  check_like({"weight"}, weight, x);
  check_numel({"weight"}, weight, stack.weight_sizes[0]);
  check_conv2d_grad(stack, "x", x.sizes().vec(), grad, stride, dilation);
}

inline void check_norms(const Stack& stack, const Tensor& x, const std::vector<Tensor>& gammas,
                        const std::vector<Tensor>& betas) {
  const size_t levels = size_t(stack.depth);
  check_count("gammas", gammas.size(), levels, false);
  check_count("betas", betas.size(), levels, false);
  for (size_t l = 0; l < levels; ++l) {
    check_values({"gammas", int64_t(l)}, gammas[l], x, stack.channels[l + 1]);
    check_values({"betas", int64_t(l)}, betas[l], x, stack.channels[l + 1]);
  }
}

inline LevelSizes check_unit_conv2d_train(const Stack& stack, const Tensor& x,
                                          const std::vector<Tensor>& weights,
                                          const std::vector<Tensor>& gammas,
                                          const std::vector<Tensor>& betas,
                                          const std::optional<Tensor>& residual, int64_t stride,
                                          int64_t dilation, double eps, bool recompute) {
  const LevelSizes sizes =
      check_conv2d(stack, Form::units, x, weights, {}, residual, stride, dilation);
  check_norms(stack, x, gammas, betas);
  STD_TORCH_CHECK(eps >= 0 && std::isfinite(eps), "eps: expected a number of at least 0, got ",
                  eps);
  STD_TORCH_CHECK(!recompute || stack.depth > 1,
                  "recompute: expected units of 2 levels or more, got 1");
  return sizes;
}

// float64 for float64 inputs, else float32.
inline ScalarType stats_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Whether `pre_norms` lacks the first level's, which is to be made again.
inline bool is_recomputed(const std::vector<Tensor>& pre_norms) {
  return pre_norms.size() > 1 && pre_norms[0].dim() == 1 && pre_norms[0].numel() == 0;
}

inline LevelSizes check_unit_conv2d_train_backward(
    const Stack& stack, const Tensor& grad, const Tensor& x, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& gammas, const std::vector<Tensor>& betas,
    const std::vector<Tensor>& pre_norms, const Tensor& stats, int64_t stride, int64_t dilation) {
  const LevelSizes sizes =
      check_conv2d(stack, Form::units, x, weights, {}, std::nullopt, stride, dilation);
  check_norms(stack, x, gammas, betas);
  check_count("pre_norms", pre_norms.size(), weights.size(), false);
  int64_t total = 0;
  for (size_t l = 0; l < pre_norms.size(); ++l) {
    const Argument z{"pre_norms", int64_t(l)};
    check_like(z, pre_norms[l], x);
    total += stack.channels[l + 1];
    if (l == 0 && is_recomputed(pre_norms)) continue;
    check_sizes(z, pre_norms[l],
                {x.size(0), stack.channels[l + 1], sizes[l + 1].h, sizes[l + 1].w});
  }
  check_device({"stats"}, stats, x);
  STD_TORCH_CHECK(stats.scalar_type() == stats_type(x), "stats: expected dtype ", stats_type(x),
                  ", got ", stats.scalar_type());
  check_sizes({"stats"}, stats, {3, total});
  check_like({"grad"}, grad, x);
  const Size out = sizes[size_t(stack.depth)];
  check_sizes({"grad"}, grad, {x.size(0), stack.channels[stack.depth], out.h, out.w});
  return sizes;
}

// --- linear units ------------------------------------------------------------------------------

// [..., C]
inline void check_rows(const Argument& a, const Tensor& t, int64_t channels) {
  const auto sizes = t.sizes();
  STD_TORCH_CHECK(sizes.size() >= 1 && sizes[sizes.size() - 1] == channels, a.text(),
                  ": expected a tensor of shape [..., ", channels, "], got ", text_of_sizes(t));
}

inline void check_linear(const Stack& stack, Form form, const Tensor& x,
                         const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  check_first({"x"}, x);
  check_rows({"x"}, x, stack.channels[0]);
  check_parameters(stack, form, x, weights, biases);
}

// The gradient of the output: of as many rows, in the same dimensions, as the input.
inline void check_linear_grad(const Stack& stack, const Tensor& grad, const Tensor& x) {
  check_like({"grad"}, grad, x);
  Shape expected = x.sizes().vec();
  expected.back() = stack.channels[stack.depth];
  check_sizes({"grad"}, grad, expected);
}

inline void check_linear_grad_input(const Stack& stack, const Tensor& grad, const Tensor& weight) {
  check_first({"grad"}, grad);
  check_rows({"grad"}, grad, stack.channels[1]);
  check_like({"weight"}, weight, grad);
  check_numel({"weight"}, weight, stack.weight_sizes[0]);
}

inline void check_linear_grad_weight(const Stack& stack, const Tensor& grad, const Tensor& x,
                                     const Shape& weight_shape) {
  check_first({"x"}, x);
  check_rows({"x"}, x, stack.channels[0]);
  check_linear_grad(stack, grad, x);
  check_weight_shape(weight_shape, stack.weight_sizes[0]);
}

inline void check_unit_linear_backward(const Stack& stack, const Tensor& grad, const Tensor& x,
                                       const std::vector<Tensor>& weights,
                                       const std::vector<Tensor>& biases) {
  check_linear(stack, Form::units, x, weights, biases);
  check_linear_grad(stack, grad, x);
}

}  // namespace bunit
