// One level of all units: its convolution, or the gradient of its input.
#pragma once

#include "cuda/finish.h"
#include "cuda/layer.h"

namespace bunit::gpu {

struct LevelConvCall {
  Source x;
  View y;
  const void* weight;  // of the images' dtype, as the operators take it
  const void* bias;    // the same, or null
  int stride, dilation;
  bool transposed;  // y is the gradient of the level's input, x that of its output
  Activation out;
  Moments* moments;  // null, or [parts][channels of y] of the output, before `out`

  // Of a transposed convolution, where the level's input came through a norm and activation: that,
  // and [parts][channels of y] for sums over y, which then is times the activation's derivative,
  // and over y * zhat.
  Source before;
  float2* sums;
};

// How many parts a level's moments or sums come in.
int64_t level_conv_parts(const Layer& layer, int level, const LevelConvCall& call);

// Level `level` of the layer.
void level_conv(const Layer& layer, int level, const LevelConvCall& call, const Context& on);

}  // namespace bunit::gpu
