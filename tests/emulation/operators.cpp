// Every operator of torch.ops.bunit_emulated on small tensors, in a program of its own: there the
// sanitizers see everything, which inside Python they would not. Results are compared with nothing
// (tests/test_cuda_emulated.py does that), but must not be NaN: neither what a kernel reads nor
// what it leaves out may be, where new memory holds NaN.
//
// Arguments: names of cases, all where there are none.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "conv_size.h"
#include "cpu/stack.h"
#include "text.h"

namespace bunit::gpu {

// torch_call_dispatcher (torch 2.13) takes the types of results in the wrong order: what returns a
// tensor and two lists is called by its own name.
using torch::stable::Tensor;
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> stacked_unit_linear_backward(
    const Tensor& gradient, const Tensor& input, const std::vector<Tensor>& weights,
    const std::vector<Tensor>& biases, const std::vector<int64_t>& units, const Text& activation,
    const Text& out_activation);

}  // namespace bunit::gpu

namespace {

using bunit::Stack;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

// Calls an operator; what it returns, in a tuple.
template <typename... Results, typename... Arguments>
std::tuple<Results...> call(const char* name, const Arguments&... arguments) {
  constexpr size_t kSize = std::max(sizeof...(Results), sizeof...(Arguments));
  std::array<StableIValue, kSize> stack{torch::stable::detail::from(arguments)...};
  const std::string full = std::string("bunit_emulated::") + name;
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(full.c_str(), "", stack.data(), TORCH_ABI_VERSION));
  return [&]<size_t... I>(std::index_sequence<I...>) {
    return std::tuple<Results...>{torch::stable::detail::to<Results>(stack[I])...};
  }(std::index_sequence_for<Results...>{});
}

struct Case {
  const char* name;
  Ints rows;  // units as the operators take them
  int64_t depth;
  int64_t n, h, w;
  int64_t stride = 1, dilation = 1;
  bool channels_last = false;
  const char* activation = "relu";
};

// Values around zero, the same ones every time.
class Values {
 public:
  explicit Values(ScalarType dtype) : dtype_(dtype) {}

  Tensor tensor(const Ints& shape, bool channels_last = false, bool single = false) {
    Tensor t = torch::stable::empty(
        shape, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
        channels_last ? std::optional(MemoryFormat::ChannelsLast) : std::nullopt);
    float* data = t.mutable_data_ptr<float>();
    for (int64_t i = 0; i < t.numel(); ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      data[i] = float(int64_t(state_ >> 40) - (int64_t(1) << 23)) / float(1 << 23);
    }
    return single || dtype_ == ScalarType::Float ? t : torch::stable::to(t, dtype_);
  }

 private:
  ScalarType dtype_;
  uint64_t state_ = 1;
};

void check(const Tensor& result, const char* name, const char* what) {
  const Tensor values = torch::stable::contiguous(torch::stable::to(result, ScalarType::Float));
  const float* data = values.const_data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) {
    if (data[i] != data[i]) {
      throw std::runtime_error(std::string(name) + ": element " + std::to_string(i) + " of " +
                               what + " is NaN");
    }
  }
}

class Runner {
 public:
  Runner(const Case& test, ScalarType dtype)
      : test_(test), values_(dtype), stack_(Stack::conv(test.rows, test.depth)) {
    Ints sizes[2] = {{test.h}, {test.w}};
    for (auto& size : sizes) {
      for (int64_t l = 0; l < test.depth; ++l) {
        const int64_t stride = l == 0 ? test.stride : 1;
        size.push_back(bunit::conv_size<int64_t>(size.back(), test.rows[1], test.rows[2], stride,
                                                 test.dilation));
      }
    }
    heights_ = sizes[0];
    widths_ = sizes[1];
  }

  void run() {
    if (test_.depth == 1) run_level();
    run_unit();
    run_train();
  }

 private:
  Tensor image(int64_t level) {
    const size_t l = size_t(level);
    return values_.tensor({test_.n, stack_.channels[l], heights_[l], widths_[l]},
                          test_.channels_last);
  }

  // Uniform levels have a grouped convolution's weight, others one long row.
  Tensor weight(int64_t level) {
    const size_t l = size_t(level), step = size_t(test_.depth) + 4;
    const int64_t k = test_.rows[1], c_in = test_.rows[3 + l];
    const bool uniform = test_.rows.size() == step;
    return uniform ? values_.tensor({stack_.channels[l + 1], c_in, k, k})
                   : values_.tensor({stack_.weight_sizes[l], 1, 1, 1});
  }

  Tensors of_levels(bool single = false) {
    Tensors made;
    for (int64_t l = 0; l < test_.depth; ++l) {
      made.push_back(values_.tensor({stack_.channels[l + 1]}, false, single));
    }
    return made;
  }

  void run_level() {
    const Tensor x = image(0), w = weight(0), grad = image(1);
    const auto bias = std::optional(of_levels()[0]);
    const std::string activation = test_.activation;
    const auto [y] = call<Tensor>("stacked_conv2d", x, w, bias, test_.rows, test_.stride,
                                  test_.dilation, activation);
    check(y, test_.name, "the output");
    const Ints size{test_.n, stack_.channels[0], test_.h, test_.w};
    const auto [gx] = call<Tensor>("stacked_conv2d_grad_input", grad, w, size, test_.rows,
                                   test_.stride, test_.dilation);
    check(gx, test_.name, "the gradient of the input");
    const Ints shape{w.size(0), w.size(1), w.size(2), w.size(3)};
    const auto [gw, gb] = call<Tensor, Tensor>("stacked_conv2d_grad_weight", grad, x, shape,
                                               test_.rows, test_.stride, test_.dilation);
    check(gw, test_.name, "the gradient of the weight");
    check(gb, test_.name, "the gradient of the bias");
  }

  void run_unit() {
    Tensors weights;
    for (int64_t l = 0; l < test_.depth; ++l) weights.push_back(weight(l));
    const std::string activation = test_.activation, relu = "relu";
    const auto residual = std::optional(image(test_.depth));
    const auto [y] =
        call<Tensor>("stacked_unit_conv2d", image(0), weights, of_levels(), residual, test_.rows,
                     test_.stride, test_.dilation, false, activation, activation, relu);
    check(y, test_.name, "the units' output");
  }

  void run_train() {
    Tensors weights;
    for (int64_t l = 0; l < test_.depth; ++l) weights.push_back(weight(l));
    const Tensor x = image(0), grad = image(test_.depth);
    const Tensors gammas = of_levels(true), betas = of_levels(true);
    const std::string activation = test_.activation, relu = "relu";
    const auto residual = std::optional(image(test_.depth));
    const auto [y, pre_norms, stats] = call<Tensor, Tensors, Tensor>(
        "stacked_unit_conv2d_train", x, weights, gammas, betas, residual, test_.rows, test_.stride,
        test_.dilation, false, 1e-5, false, activation, activation, relu);
    check(y, test_.name, "the output in training");
    check(stats, test_.name, "the statistics");
    const auto [gx, gw, affine] = call<Tensor, Tensors, Tensor>(
        "stacked_unit_conv2d_train_backward", grad, x, weights, gammas, betas, pre_norms, stats,
        test_.rows, test_.stride, test_.dilation, false, activation, activation);
    check(gx, test_.name, "the gradient of the input in training");
    for (const Tensor& g : gw) check(g, test_.name, "the gradient of a weight in training");
    check(affine, test_.name, "the gradient of the norms");
  }

  const Case& test_;
  Values values_;
  const Stack stack_;
  Ints heights_, widths_;
};

// Units of two levels, their output and its gradient.
void run_units(const Ints& rows, const Tensor& x, const Tensors& weights, const Tensors& biases,
               const Tensor& grad) {
  const std::string gelu = "gelu", relu = "relu";
  const auto [y] = call<Tensor>("stacked_unit_linear", x, weights, biases, rows, gelu, relu);
  check(y, "linear", "the units' output");
  const auto [gx, gw, gb] = bunit::gpu::stacked_unit_linear_backward(
      grad, x, weights, biases, rows, bunit::Text(gelu), bunit::Text(relu));
  check(gx, "linear", "the gradient of the units' input");
  for (const Tensor& g : gw) check(g, "linear", "the gradient of a weight");
  for (const Tensor& g : gb) check(g, "linear", "the gradient of a bias");
}

// Units 4-8-4 beside 1-2-1, and one that shared memory does not hold.
void run_linear_units(ScalarType dtype) {
  Values values(dtype);
  run_units({9, 4, 8, 4, 2, 1, 2, 1}, values.tensor({33, 38}),
            {values.tensor({9 * 32 + 2 * 2, 1}), values.tensor({9 * 32 + 2 * 2, 1})},
            {values.tensor({76}), values.tensor({38})}, values.tensor({33, 38}));
  run_units({1, 64, 64, 64}, values.tensor({5, 64}),
            {values.tensor({64, 64}), values.tensor({64, 64})},
            {values.tensor({64}), values.tensor({64})}, values.tensor({5, 64}));
}

// Linear units 4-8 beside 1-2, 33 rows.
void run_linear(ScalarType dtype) {
  Values values(dtype);
  const Ints level{3, 4, 8, 2, 1, 2};
  const std::string relu = "relu";
  const Tensor x = values.tensor({33, 14}), grad = values.tensor({33, 28});
  const Tensor w = values.tensor({3 * 32 + 2 * 2, 1});
  const auto bias = std::optional(values.tensor({28}));
  const auto [y] = call<Tensor>("stacked_linear", x, w, bias, level, relu);
  check(y, "linear", "the output");
  const auto [gx] = call<Tensor>("stacked_linear_grad_input", grad, w, level);
  check(gx, "linear", "the gradient of the input");
  const Ints shape{w.size(0), w.size(1)};
  const auto [gw, gb] = call<Tensor, Tensor>("stacked_linear_grad_weight", grad, x, shape, level);
  check(gw, "linear", "the gradient of the weight");
  check(gb, "linear", "the gradient of the bias");
}

const Case kCases[] = {
    {"level", {5, 3, 1, 2, 4}, 1, 2, 9, 13},
    {"level_hybrid", {2, 3, 1, 1, 2, 1, 5, 2, 3, 1}, 1, 2, 9, 13, 2, 1, true},
    {"level_1x1", {3, 1, 0, 2, 3}, 1, 2, 5, 7},
    // More input channels than shared memory holds tiles of.
    {"level_in_parts", {1, 7, 3, 20, 1}, 1, 1, 16, 32},
    // With few processors a block takes several tiles.
    {"level_many_tiles", {8, 3, 1, 1, 1}, 1, 5, 16, 32},
    // Too far a reach for both gradients at once.
    {"units_reach", {1, 3, 40, 2, 2, 4}, 2, 1, 4, 4, 1, 40},
    {"units", {3, 3, 1, 2, 4, 2}, 2, 2, 19, 35},
    // More than 33 tiles: threads merge the batch statistics of several in turn.
    {"units_many_tiles", {1, 3, 1, 1, 1, 1}, 2, 40, 16, 32},
    {"units_channels_last", {3, 3, 1, 2, 4, 2}, 2, 2, 9, 11, 1, 1, true},
    {"units_strided", {3, 3, 1, 2, 4, 4}, 2, 2, 9, 11, 2},
    {"units_pool",
     {1, 3, 1, 1, 2, 1, 1, 3, 1, 1, 2, 2, 1, 3, 1, 1, 2, 3,
      1, 3, 1, 2, 1, 2, 1, 3, 1, 2, 1, 1, 1, 3, 1, 3, 2, 1},
     2,
     2,
     9,
     10},
    // Kinds with compile-time code beside others, in groups of neighbours; 4-column loads.
    {"units_mixed", {5, 3, 1, 1, 2, 1, 2, 5, 2, 2, 4, 2, 5, 3, 1, 2, 3, 2}, 2, 3, 9, 8, 1, 1, true},
    {"units_strided_groups", {5, 3, 1, 2, 4, 4}, 2, 3, 9, 8, 2, 1, true},
    {"units_4_8_4", {2, 3, 1, 4, 8, 4}, 2, 1, 9, 9, 1, 1, false, "silu"},
    {"units_8_16_8", {2, 3, 1, 8, 16, 8}, 2, 1, 9, 9, 1, 1, true},
    {"units_general", {2, 5, 4, 3, 5, 2, 1, 3, 2, 1, 3, 1}, 2, 2, 9, 8, 2, 2},
    {"units_deep", {2, 3, 1, 2, 3, 3, 1, 2}, 4, 2, 7, 6},
    {"units_7x7", {2, 7, 3, 1, 2, 1}, 2, 1, 9, 9},
    {"units_wide", {1, 3, 1, 16, 32, 16}, 2, 1, 5, 5},
    {"units_tiny_images", {3, 3, 1, 2, 4, 2}, 2, 9, 2, 1},
};

}  // namespace

int main(int count, char** names) {
  const auto wanted = [&](const char* name) {
    bool found = count == 1;
    for (int i = 1; i < count; ++i) found = found || std::strcmp(names[i], name) == 0;
    return found;
  };
  int ran = 0;
  try {
    for (ScalarType dtype : {ScalarType::Float, ScalarType::BFloat16}) {
      for (const Case& test : kCases) {
        if (!wanted(test.name)) continue;
        Runner(test, dtype).run();
        ++ran;
      }
      if (wanted("linear")) {
        run_linear(dtype);
        run_linear_units(dtype);
        ran += 2;
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  std::printf("%d cases\n", ran);
  return ran > 0 ? 0 : 2;
}
