// What a device allows a launch.
#pragma once

#include <cstddef>

#include "vector_types.h"

namespace bunit::emulation {

constexpr int kMaxThreads = 1024;

// Whether the device would run it; if not, cudaGetLastError() says so.
bool check_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes);

}  // namespace bunit::emulation
