// The launch of whole-unit inference for one element type, each compiled in a file of its own: it
// is the largest kernel.
#pragma once

#include "cuda/unit_plan.h"

namespace bunit::gpu {

template <class T>
void launch_unit_forward(const UnitForwardCall& call, const Tiling& tiling, const Runs& runs,
                         unsigned blocks, size_t bytes, cudaStream_t stream);

}  // namespace bunit::gpu
