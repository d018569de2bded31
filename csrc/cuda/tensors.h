// PyTorch's tensors as the kernels take them, and its device, stream and memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#ifndef BUNIT_EMULATE
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <optional>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace bunit::gpu {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What kernels may take of images.
inline Scalar dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Scalar::float32;
    case ScalarType::BFloat16:
      return Scalar::bfloat16;
    case ScalarType::Half:
      return Scalar::float16;
    default:
      STD_TORCH_CHECK(false, "backend cuda takes float32, bfloat16 and float16");
      return Scalar::float32;
  }
}

#ifndef BUNIT_EMULATE
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream);
  return static_cast<cudaStream_t>(stream);
}
#endif

// The device of `t` made current, and its current stream, for as long as this lives.
class OnDevice : public Context {
 public:
#ifdef BUNIT_EMULATE
  explicit OnDevice(const Tensor& t) : Context(dtype_of(t), nullptr), like_(t) {}
#else
  explicit OnDevice(const Tensor& t)
      : Context(dtype_of(t), current_stream(t)), guard_(t.get_device_index()), like_(t) {}
#endif

  float* workspace(int64_t floats) const override {
    held_.push_back(
        torch::stable::empty({floats}, ScalarType::Float, std::nullopt, like_.device()));
    return static_cast<float*>(held_.back().mutable_data_ptr());
  }

 private:
#ifndef BUNIT_EMULATE
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  const Tensor like_;
  mutable std::vector<Tensor> held_;
};

inline Array array_of(const Tensor& t) { return {t.mutable_data_ptr(), t.numel()}; }

inline void check_unshuffled(bool shuffle) {
  STD_TORCH_CHECK(!shuffle, "shuffle is for the CPU: outputs of CUDA kernels are shuffled after");
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

inline View view_of(const Tensor& t) {
  for (int i = 0; i < 4; ++i) {
    STD_TORCH_CHECK(t.size(i) < (int64_t(1) << 31), "a dimension past 2^31");
  }
  return {t.const_data_ptr(), int(t.size(0)), int(t.size(1)), int(t.size(2)), int(t.size(3)),
          t.stride(0),        t.stride(1),    t.stride(2),    t.stride(3)};
}

// [..., C] seen as an image [1, C, h, w] of h * w rows whose channels lie next to each other: w,
// where it can be, of a size that fills warps.
inline View rows_of(const Tensor& dense) {
  const int64_t c = dense.size(dense.dim() - 1);
  const int64_t rows = c == 0 ? 0 : dense.numel() / c;
  STD_TORCH_CHECK(rows < (int64_t(1) << 31), "more than 2^31 rows");
  int64_t w = 32;
  while (w >= 8 && rows % w != 0) --w;
  if (w < 8) w = rows;
  const int64_t h = w == 0 ? 0 : rows / w;
  return {dense.const_data_ptr(), 1, int(c), int(h), int(w), 0, 1, w * c, c};
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Values of a floating-point tensor as contiguous float32.
inline Tensor as_float(const Tensor& t) {
  return dense(t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float));
}
inline Tensor with_dtype(const Tensor& t, ScalarType dtype) {
  return dense(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
}

// Whether outputs are to be channels_last, as the input is (mirrors csrc/cpu/tensors.h).
inline bool wants_channels_last(const Tensor& x) {
  if (x.is_contiguous()) return false;
  const int64_t sizes[] = {x.size(1), x.size(3), x.size(2), x.size(0)};
  const int64_t strides[] = {x.stride(1), x.stride(3), x.stride(2), x.stride(0)};
  int64_t expected = 1;
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] != 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return true;
}

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> shape, ScalarType dtype,
                         bool channels_last = false) {
  return torch::stable::empty(
      shape, dtype, std::nullopt, like.device(), std::nullopt,
      channels_last ? std::optional(MemoryFormat::ChannelsLast) : std::nullopt);
}
inline Tensor new_like(const Tensor& like, std::vector<int64_t> shape, bool channels_last) {
  return new_tensor(like, std::move(shape), like.scalar_type(), channels_last);
}
inline float* floats(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

}  // namespace bunit::gpu
