// Whole-unit inference: all levels of all units in one launch, hidden activations in shared memory.
#pragma once

#include "cuda/launch.h"
#include "cuda/layer.h"

namespace bunit::gpu {

struct UnitForwardCall {
  View x, y, residual;
  const void* weights[kMaxDepth];  // of the images' dtype, as the operators take them
  const void* biases[kMaxDepth];   // the same, or null
  int depth, stride, dilation;
  Activation hidden, out, after_residual;
};

// Whether it ran: tiles of units too wide for shared memory do not fit.
bool unit_forward(const Layer& layer, const UnitForwardCall& call, const Context& on);

}  // namespace bunit::gpu
