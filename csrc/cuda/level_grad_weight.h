// Gradients of one level's weight and bias.
#pragma once

#include "cuda/finish.h"
#include "cuda/layer.h"

namespace bunit::gpu {

struct LevelGradWeightCall {
  Source x, grad;  // the level's input and the gradient of its convolution's output
  int stride, dilation;
};

// Fills `grad_weight` and, where it has data, `grad_bias`, from sums in a fixed order.
void level_grad_weight(const Layer& layer, int level, const LevelGradWeightCall& call,
                       Array grad_weight, Array grad_bias, const Context& on);

}  // namespace bunit::gpu
