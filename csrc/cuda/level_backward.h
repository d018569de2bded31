// Both gradients of one level in one pass over memory.
#pragma once

#include "cuda/finish.h"
#include "cuda/layer.h"

namespace bunit::gpu {

// A level of stride 1, between a norm after it and perhaps one before it.
struct LevelBackwardCall {
  Source grad;  // of the convolution's output, from that after its norm
  Source x;     // the level's input
  View grad_x;  // gradient of x; where x has a norm, before its activation, g in Source's words
  const void* weight;
  int dilation;
};

// Fills `grad_x`, `grad_weight` and, where x has a norm, `before`. False, and nothing done, where
// units are too wide for their tiles to fit shared memory.
bool level_backward(const Layer& layer, int level, const LevelBackwardCall& call, Array grad_weight,
                    const NormGrads& before, const Context& on);

}  // namespace bunit::gpu
