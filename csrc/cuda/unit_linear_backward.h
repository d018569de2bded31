// Backward pass of whole linear units: all levels of all units in one launch, and one that adds up
// what its blocks found for the parameters.
#pragma once

#include <vector>

#include "cuda/launch.h"
#include "cuda/layer.h"

namespace bunit::gpu {

// [rows, channels], dense.
struct Rows {
  const void* data;
  int channels;
};

struct UnitLinearBackwardCall {
  Rows x, grad, grad_x;
  int rows, depth;
  const void* weights[kMaxDepth];  // of the rows' dtype, as the operators take them
  const void* biases[kMaxDepth];   // the same, or null
  Activation hidden, out;
};

// Whether it ran: units too wide for shared memory do not fit. Fills `call.grad_x` and
// `grad_weights` and `grad_biases` (empty, or one a level), from sums in a fixed order.
bool unit_linear_backward(const Layer& layer, const UnitLinearBackwardCall& call,
                          const std::vector<Array>& grad_weights,
                          const std::vector<Array>& grad_biases, const Context& on);

}  // namespace bunit::gpu
