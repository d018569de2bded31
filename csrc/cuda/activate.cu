#include "cuda/activate.h"

namespace bunit::gpu {
namespace {

constexpr int kThreads = 256;

// `grad` may be null.
template <class T>
__global__ void __launch_bounds__(kThreads)
    activate_kernel(Activation name, const T* z, const T* grad, int64_t size, T* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const float v = to_float(z[i]);
  out[i] = from_float<T>(grad ? activation_grad(name, v, to_float(grad[i])) : activate(name, v));
}

void run(Activation name, const Tensor& z, const void* grad, Tensor& out, cudaStream_t stream) {
  const int64_t size = z.numel(), blocks = (size + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "more than 2^31 blocks");
  if (size == 0) return;
  for_dtype(z, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((activate_kernel<T>), dim3(unsigned(blocks)), dim3(kThreads), 0, stream, name,
                 static_cast<const T*>(z.const_data_ptr()), static_cast<const T*>(grad), size,
                 static_cast<T*>(out.mutable_data_ptr()));
  });
  check_launch("activate");
}

}  // namespace

void activate(Activation name, const Tensor& z, Tensor& y, cudaStream_t stream) {
  run(name, z, nullptr, y, stream);
}

void activation_grad(Activation name, const Tensor& z, const Tensor& grad, Tensor& grad_z,
                     cudaStream_t stream) {
  run(name, z, grad.const_data_ptr(), grad_z, stream);
}

}  // namespace bunit::gpu
