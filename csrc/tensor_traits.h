// What operators ask of tensors and names, on the CPU and on CUDA.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <iterator>
#include <optional>
#include <string>

#include "cpu/kernels/calls.h"

namespace bunit {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtypes that kernels take: float32, float64, bfloat16 and float16.
inline std::optional<Scalar> scalar_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Scalar::float32;
    case ScalarType::Double:
      return Scalar::float64;
    case ScalarType::BFloat16:
      return Scalar::bfloat16;
    case ScalarType::Half:
      return Scalar::float16;
    default:
      return std::nullopt;
  }
}

inline Scalar scalar_of(const Tensor& t) {
  const std::optional<Scalar> scalar = scalar_of(t.scalar_type());
  STD_TORCH_CHECK(scalar, "expected float32, float64, bfloat16 or float16, got ", t.scalar_type());
  return *scalar;
}

// By number; bunit_kernels/activations.py says what they compute.
inline constexpr const char* kActivationNames[] = {"identity", "relu", "relu6",    "leaky_relu",
                                                   "gelu",     "silu", "hardswish"};
static_assert(std::size(kActivationNames) == size_t(Activation::hardswish) + 1);

// `argument` is the name of the operator's.
inline Activation activation_of(const std::string& name, const char* argument) {
  std::string known;
  for (size_t i = 0; i < std::size(kActivationNames); ++i) {
    if (name == kActivationNames[i]) return Activation(i);
  }
  for (const char* other : kActivationNames)
    known += std::string(known.empty() ? "" : ", ") + other;
  STD_TORCH_CHECK(false, argument, ": expected one of ", known, ", got \"", name, "\"");
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

// Outputs follow the input; what is both, of one channel or one pixel, is contiguous.
inline bool output_is_channels_last(const Tensor& x) {
  return is_channels_last(x) && !x.is_contiguous();
}

}  // namespace bunit
