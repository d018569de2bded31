#include "linear_plan.h"

#include <algorithm>

namespace bunit {
namespace {

// A block's planes. Times are the same from 40 to 256 KiB, in the second-level cache, too.
constexpr int64_t kCacheBytes = 64 * 1024;
// Rows are split alike whatever the number of threads, so that sums come out the same: into so many
// items with all units, of so many rows at least.
constexpr int64_t kItems = 32, kRows = 128;

Tensor in_type(const Tensor& t, Scalar dtype) {
  const Scalar type = dtype == Scalar::float64 ? Scalar::float64 : Scalar::float32;
  return scalar_of(t) == type && t.is_contiguous() ? t : computed(t, dtype);
}

// Whether rows as they lie are quicker than planes.
bool are_wide(const Stack& stack, int64_t lanes) {
  for (const Unit& unit : stack.units) {
    for (int l = 0; l <= stack.depth; ++l) {
      if (!fills_vectors(unit.widths[l], lanes)) return false;
    }
  }
  return true;
}

}  // namespace

LinearPlan::LinearPlan(const Stack& stack, const Image& x, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, Activation hidden, Activation out) {
  call_.x = x;
  call_.depth = stack.depth;
  call_.hidden = hidden;
  call_.out = out;
  for (int l = 0; l < stack.depth; ++l) {
    call_.weights[l] = held_.emplace_back(in_type(weights[size_t(l)], x.dtype)).const_data_ptr();
    if (biases.empty()) continue;
    call_.biases[l] = held_.emplace_back(in_type(biases[size_t(l)], x.dtype)).const_data_ptr();
  }
  for (const Unit& unit : stack.units) {
    LinearUnit& made = units_.emplace_back();
    made.in_channel = unit.channels[0];
    made.out_channel = unit.channels[stack.depth];
    for (int l = 0; l <= stack.depth; ++l) made.widths[l] = unit.widths[l];
    for (int l = 0; l < stack.depth; ++l) {
      made.weights[l] = unit.weights[l];
      made.biases[l] = unit.channels[l + 1];
    }
  }
  call_.units = units_.data();
  wide_ = are_wide(stack, kernels().vector_bytes / compute_size(x.dtype));
  split(stack);
}

// Into groups of units and parts of the rows, and these into blocks.
void LinearPlan::split(const Stack& stack) {
  const int64_t count = int64_t(units_.size()), size = compute_size(call_.x.dtype);
  const int64_t lanes = kernels().vector_bytes / size;
  // Units that share a vector of channels, which is transposed as a whole.
  const int64_t channels = std::min(stack.channels[0], stack.channels[stack.depth]);
  group_ = std::clamp<int64_t>(lanes * count / channels, 1, count);
  groups_ = (count + group_ - 1) / group_;
  call_.in_channels = group_channels(stack, 0, group_);
  call_.out_channels = group_channels(stack, stack.depth, group_);

  const int64_t rows = std::max<int64_t>(1, call_.x.h);
  const int64_t wanted = (kItems + groups_ - 1) / groups_;
  parts_ = std::clamp<int64_t>(rows / kRows, 1, wanted);
  call_.part = round_up((rows + parts_ - 1) / parts_, lanes);
  parts_ = (rows + call_.part - 1) / call_.part;

  const Memory memory = wide_ ? wide_memory(stack, lanes) : planes_memory(stack);
  const int64_t most = std::max(kCacheBytes / (memory.row * size), 4 * lanes);
  const int64_t blocks = (call_.part + most - 1) / most;
  call_.block = round_up((call_.part + blocks - 1) / blocks, lanes);
  call_.plane = padded_plane(call_.block, lanes);
  scratch_bytes_ = (memory.fixed + memory.row * (wide_ ? call_.block : call_.plane)) * size;
}

// Planes of the units that an item takes, and of one of them: pre-activations, activations and
// gradients of all levels.
LinearPlan::Memory LinearPlan::planes_memory(const Stack& stack) const {
  int64_t own = 0;
  for (const Unit& unit : stack.units) {
    int64_t planes = unit.widths[stack.depth];
    for (int l = 1; l < stack.depth; ++l) planes += 3 * unit.widths[l];
    own = std::max(own, planes);
  }
  return {call_.in_channels + call_.out_channels + own, 0};
}

// The same of a single unit in whole vectors, and its packed weights and biases.
LinearPlan::Memory LinearPlan::wide_memory(const Stack& stack, int64_t lanes) const {
  Memory most{};
  for (const Unit& unit : stack.units) {
    const auto whole = [&](int l) { return round_up(unit.widths[l], lanes); };
    Memory own{whole(0) + 2 * whole(stack.depth), 0};
    for (int l = 1; l < stack.depth; ++l) own.row += 3 * whole(l);
    for (int l = 0; l < stack.depth; ++l) {
      own.fixed += (unit.widths[l] + 1) * whole(l + 1) + unit.widths[l + 1] * whole(l);
    }
    most = {std::max(most.row, own.row), std::max(most.fixed, own.fixed)};
  }
  return most;
}

void LinearPlan::run() {
  check_scratch(scratch_bytes_);
  const int type = compute_index(call_.x.dtype);
  const auto linear = wide_ ? kernels().wide_linear[type] : kernels().linear[type];
  const int64_t count = int64_t(units_.size());
  for_each_item(parts_ * groups_, [&](int64_t item) {
    const int64_t first = item % groups_ * group_;
    linear(call_, item / groups_, first, std::min(first + group_, count), scratch(scratch_bytes_));
  });
}

void LinearPlan::forward(const Image& x, const Image& y) {
  call_.x = x;
  call_.y = y;
  run();
}

void LinearPlan::backward(const Image& x, const Image& grad, const Image& grad_x,
                          std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases) {
  call_.x = x;
  call_.y = grad;
  call_.grad_x = grad_x;
  if (x.dtype == Scalar::float64) {
    sum_rows<double>(grad_weights, grad_biases);
  } else {
    sum_rows<float>(grad_weights, grad_biases);
  }
}

template <class T>
void LinearPlan::sum_rows(std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases) {
  call_.sums_size = 0;
  const auto place = [&](const std::vector<Tensor>& gradients, int64_t* begins) {
    for (size_t l = 0; l < gradients.size(); ++l) {
      begins[l] = call_.sums_size;
      call_.sums_size += gradients[l].numel();
    }
  };
  place(grad_weights, call_.weight_sums);
  place(grad_biases, call_.bias_sums);
  std::vector<T> sums(size_t(parts_ * call_.sums_size));
  call_.sums = sums.data();
  run();
  const auto finish = [&](std::vector<Tensor>& gradients, const int64_t* begins) {
    for (size_t l = 0; l < gradients.size(); ++l) {
      sum_parts(sums.data() + begins[l], parts_, call_.sums_size, gradients[l].numel(),
                gradients[l]);
    }
  };
  finish(grad_weights, call_.weight_sums);
  finish(grad_biases, call_.bias_sums);
}

}  // namespace bunit
