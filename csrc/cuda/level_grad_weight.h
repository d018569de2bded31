// Gradients of one level's weight and bias.
#pragma once

#include "cuda/finish.h"
#include "cuda/layer.h"

namespace bunit::gpu {

struct LevelGradWeightCall {
  Source x, grad;  // the level's input and the gradient of its convolution's output
  int stride, dilation;
};

// Fills `grad_weight` and, where it is given, `grad_bias`, of one dtype, from sums in a fixed
// order.
void level_grad_weight(const Layer& layer, int level, const LevelGradWeightCall& call,
                       const Tensor& like, Tensor& grad_weight, Tensor* grad_bias,
                       cudaStream_t stream);

}  // namespace bunit::gpu
