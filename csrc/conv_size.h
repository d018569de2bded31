// The size of what a convolution makes, on host and device.
#pragma once

#ifdef __CUDACC__
#define BUNIT_HOST_DEVICE __host__ __device__
#else
#define BUNIT_HOST_DEVICE
#endif

namespace bunit {

// Along one axis, as torch.nn.Conv2d has it; less than 1 where the kernel is larger than the padded
// input.
template <class Int>
BUNIT_HOST_DEVICE constexpr Int conv_size(Int size, Int kernel, Int pad, Int stride, Int dilation) {
  const Int rest = size + 2 * pad - dilation * (kernel - 1) - 1;
  return rest < 0 ? 0 : rest / stride + 1;
}

}  // namespace bunit
