// What follows sums and statistics that a kernel leaves in parts: parts merged, in a fixed order.
#pragma once

#include "cuda/launch.h"

namespace bunit::gpu {

// Mean, sum of squared distances from it, and number of some values of one channel.
struct Moments {
  float mean, m2, count;
};

// Moments of `parts` parts merged: mean, 1 / sqrt(var + eps) and unbiased variance of each channel
// to rows 0, 1, 2 of `stats` (`stride` floats apart).
void finish_moments(const Moments* moments, int64_t parts, int channels, double eps, float* stats,
                    int64_t stride, const Context& on);

// Where the gradients of a norm's parameters go, and the means that the gradient through it takes.
struct NormGrads {
  float *gamma, *beta, *mean_g, *mean_gz;
  double count;  // values a channel
};

// Sums in parts, rows of [weights][biases][channels][2]; any of them may be missing. Of a channel
// come the sum of g and that of g * zhat.
struct PartSums {
  const float* parts;
  int64_t count;
  int channels;
  NormGrads norm;

  __host__ __device__ int64_t row(int64_t weights, int64_t biases) const {
    return weights + biases + 2 * channels;
  }
};

// Adds them up: into `weight` and `bias` where they have data, and into `sums.norm`.
void finish_sums(const PartSums& sums, Array weight, Array bias, const Context& on);

}  // namespace bunit::gpu
