// What operators ask of tensors and names, on the CPU and on CUDA.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "cpu/kernels/calls.h"

namespace bunit {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Scalar scalar_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Scalar::float32;
    case ScalarType::Double:
      return Scalar::float64;
    case ScalarType::BFloat16:
      return Scalar::bfloat16;
    case ScalarType::Half:
      return Scalar::float16;
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
      return Scalar::float32;
  }
}

inline Activation activation_of(const std::string& name) {
  static constexpr const char* kNames[] = {"identity", "relu", "relu6",    "leaky_relu",
                                           "gelu",     "silu", "hardswish"};
  for (int i = 0; i < 7; ++i) {
    if (name == kNames[i]) return Activation(i);
  }
  STD_TORCH_CHECK(false, "unknown activation ", name);
  return Activation::identity;
}

// Whether the strides are those of a channels_last tensor; dimensions of size 1 have none.
inline bool is_channels_last(const Tensor& x) {
  const int64_t sizes[] = {x.size(1), x.size(3), x.size(2), x.size(0)};
  const int64_t strides[] = {x.stride(1), x.stride(3), x.stride(2), x.stride(0)};
  int64_t expected = 1;
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

// Outputs follow the input (mirrors empty_like_format in bunit_kernels/ops/_shapes.py).
inline bool output_is_channels_last(const Tensor& x) {
  return is_channels_last(x) && !x.is_contiguous();
}

}  // namespace bunit
