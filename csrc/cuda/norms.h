// Passes over whole images around a layer's last norm.
#pragma once

#include "cuda/finish.h"

namespace bunit::gpu {

// y = after_residual(activation(norm(z)) + residual); norm and residual may hold no data.
void apply_norm(const View& z, const View& y, const View& residual, const DeviceNorm& norm,
                Activation activation, Activation after_residual, const Context& on);

// Sums over each channel of g = grad * activation'(norm(z)) and of g * zhat, to `to`.
void sum_grads(const View& grad, const View& z, const DeviceNorm& norm, Activation activation,
               const NormGrads& to, const Context& on);

}  // namespace bunit::gpu
