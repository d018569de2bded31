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
  out[i] = from_float<T>(grad ? activation_grad_inlined(name, v, to_float(grad[i]))
                              : activate_inlined(name, v));
}

void run(Activation name, const void* z, const void* grad, void* out, int64_t size,
         const Context& on) {
  const int64_t blocks = (size + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "more than 2^31 blocks");
  if (size == 0) return;
  for_dtype(on.dtype, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((activate_kernel<T>), dim3(unsigned(blocks)), dim3(kThreads), 0, on.stream, name,
                 static_cast<const T*>(z), static_cast<const T*>(grad), size, static_cast<T*>(out));
  });
  check_launch("activate");
}

}  // namespace

void activate(Activation name, const void* z, void* y, int64_t size, const Context& on) {
  run(name, z, nullptr, y, size, on);
}

void activation_grad(Activation name, const void* z, const void* grad, void* grad_z, int64_t size,
                     const Context& on) {
  run(name, z, grad, grad_z, size, on);
}

}  // namespace bunit::gpu
