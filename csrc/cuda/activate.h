// Activations and their gradients element by element, where no kernel has them as its end.
#pragma once

#include "cuda/launch.h"

namespace bunit::gpu {

// y = activation(z); `size` elements each.
void activate(Activation name, const void* z, void* y, int64_t size, const Context& on);

// grad_z = grad * activation'(z).
void activation_grad(Activation name, const void* z, const void* grad, void* grad_z, int64_t size,
                     const Context& on);

}  // namespace bunit::gpu
