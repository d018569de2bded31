// The one door through which kernels see CUDA. nvcc finds the real thing behind it; with
// -DBUNIT_EMULATE a host compiler (-x c++ -std=c++20) finds csrc/cuda/emulation, on which the tests
// run the very same sources. Kernels stay plain CUDA but for three macros:
//
//   BUNIT_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//   BUNIT_DYNAMIC_SHARED(T, name)    T* name: the block's dynamic shared memory
//   BUNIT_LIBRARY_IMPL(m) {...}      registers operators for CUDA tensors; emulated, those of the
//                                    namespace bunit_emulated for CPU tensors
//
// A kernel that is a template with several arguments goes in parentheses: ((kernel<A, B>), ...).
#pragma once

#ifdef BUNIT_EMULATE

#include "cuda/emulation/emulation.h"

#define BUNIT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)     \
  ::bunit::emulation::launch(#kernel, kernel, grid, block, shared_bytes, \
                             stream __VA_OPT__(, ) __VA_ARGS__)
#define BUNIT_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::bunit::emulation::dynamic_shared())
#define BUNIT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(bunit_emulated, CPU, m)

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define BUNIT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
// One array of bytes for all types: arrays of one name and different types clash between kernels.
#define BUNIT_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char bunit_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(bunit_dynamic_shared)
#define BUNIT_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CUDA, m)

#endif
