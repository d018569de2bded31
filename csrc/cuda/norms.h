// Batch normalisation between and after levels, statistics and sums never leaving the device.
#pragma once

#include "cuda/launch.h"
#include "cuda/level_conv.h"

namespace bunit::gpu {

// Moments of `parts` parts merged: mean, 1 / sqrt(var + eps) and unbiased variance of each channel
// to rows 0, 1, 2 of `stats` (`stride` floats apart), gamma * inv_std to `scale`.
void finish_moments(const Moments* moments, int64_t parts, int channels, double eps,
                    const float* gamma, float* stats, int64_t stride, float* scale,
                    cudaStream_t stream);

// out[c] = gamma[c] * inv_std[c].
void scale_of(const float* gamma, const float* inv_std, int channels, float* out,
              cudaStream_t stream);

// y = after_residual(activation(norm(z)) + residual); norm and residual may hold no data.
void apply_norm(const View& z, const View& y, const View& residual, const DeviceNorm& norm,
                Activation activation, Activation after_residual, const Tensor& like,
                cudaStream_t stream);

// Sums over each channel of g = grad * activation'(norm(z)) and of g * zhat: to `grad_beta` and
// `grad_gamma`, and their means to `mean_g` and `mean_gz`.
void sum_grads(const View& grad, const View& z, const DeviceNorm& norm, Activation activation,
               const Tensor& like, float* grad_gamma, float* grad_beta, float* mean_g,
               float* mean_gz, cudaStream_t stream);

}  // namespace bunit::gpu
