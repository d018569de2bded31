// Activations and their gradients element by element, where no kernel has them as its end.
#pragma once

#include "cuda/launch.h"

namespace bunit::gpu {

// y = activation(z); all of one dtype and dense.
void activate(Activation name, const Tensor& z, Tensor& y, cudaStream_t stream);

// grad_z = grad * activation'(z).
void activation_grad(Activation name, const Tensor& z, const Tensor& grad, Tensor& grad_z,
                     cudaStream_t stream);

}  // namespace bunit::gpu
