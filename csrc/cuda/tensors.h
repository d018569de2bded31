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
#include "tensor_traits.h"

namespace bunit::gpu {

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
  explicit OnDevice(const Tensor& t) : Context(scalar_of(t), nullptr), like_(t) {}
#else
  explicit OnDevice(const Tensor& t)
      : Context(scalar_of(t), current_stream(t)), guard_(t.get_device_index()), like_(t) {}
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
  STD_TORCH_CHECK(!shuffle,
                  "shuffle: expected false, got true: outputs of CUDA kernels are shuffled after");
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
