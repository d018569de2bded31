// The host side of a launch, with nothing of PyTorch in it: nvcc goes through every header once for
// each architecture, and PyTorch's take longer than most kernels.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include "cuda/values.cuh"

namespace bunit::gpu {

// What the kernels of one operator share: the element type of its images, the stream, and memory
// for what one launch leaves to the next.
class Context {
 public:
  Context(Scalar dtype, cudaStream_t stream) : dtype(dtype), stream(stream) {}
  virtual ~Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // So many floats on the device, not initialised; they live as long as this.
  virtual float* workspace(int64_t floats) const = 0;

  const Scalar dtype;
  const cudaStream_t stream;
};

// Elements of an operator's dtype that lie next to each other; no data where there are none.
struct Array {
  void* data = nullptr;
  int64_t size = 0;
};

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA kernel ", kernel, ": ", cudaGetErrorString(error));
}

// Streaming multiprocessors of the current device.
inline int processors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Calls body with a value of the element type.
template <class F>
void for_dtype(Scalar dtype, F body) {
  switch (dtype) {
    case Scalar::float32:
      return body(float{});
    case Scalar::bfloat16:
      return body(__nv_bfloat16{});
    case Scalar::float16:
      return body(__half{});
    default:
      STD_TORCH_CHECK(false, "backend cuda takes float32, bfloat16 and float16");
  }
}

inline int element_size(Scalar dtype) { return dtype == Scalar::float32 ? 4 : 2; }

inline int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

}  // namespace bunit::gpu
