// Tensors of the stable ABI as the kernels see them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <vector>

#include "runtime.h"
#include "tensor_traits.h"

namespace bunit {

// Index into a Kernels table's entries, and the size of the type computed in.
inline int compute_index(Scalar dtype) { return dtype == Scalar::float64 ? 1 : 0; }
inline int64_t compute_size(Scalar dtype) { return dtype == Scalar::float64 ? 8 : 4; }

// A new tensor like `like`, its pages wanted huge where it is large.
inline Tensor new_output(const Tensor& like, std::vector<int64_t> shape, bool channels_last) {
  Tensor out = torch::stable::empty(
      shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? std::optional(MemoryFormat::ChannelsLast) : std::nullopt);
  advise_huge_pages(out.mutable_data_ptr(), out.numel() * int64_t(out.element_size()));
  return out;
}

inline Image image_of(const Tensor& x) {
  Image image{x.const_data_ptr(), scalar_of(x), x.size(0),   x.size(1),   x.size(2),
              x.size(3),          x.stride(0),  x.stride(1), x.stride(2), x.stride(3)};
  // A dimension of size 1 may have any stride; here it gets one that lets pixels be gone through
  // without regard to rows.
  if (image.w == 1) image.stride_w = image.stride_h;
  if (image.h == 1) image.stride_h = image.w * image.stride_w;
  return image;
}

inline int64_t element_size(Scalar dtype) {
  return dtype == Scalar::float64 ? 8 : dtype == Scalar::float32 ? 4 : 2;
}

// Images [first, first + count) of a batch; what holds no data stays so.
inline Image images_of(Image image, int64_t first, int64_t count) {
  if (!image.data) return image;
  image.data =
      static_cast<const char*>(image.data) + first * image.stride_n * element_size(image.dtype);
  image.n = count;
  return image;
}

// [..., C] seen as a channels_last image [1, C, rows, 1].
inline Image rows_of(const Tensor& contiguous) {
  const int64_t c = contiguous.size(contiguous.dim() - 1);
  const int64_t rows = c == 0 ? 0 : contiguous.numel() / c;
  return {contiguous.const_data_ptr(), scalar_of(contiguous), 1, c, rows, 1, 0, 1, c, 1};
}

// Values of a floating-point tensor in the type that kernels compute in, contiguous.
inline Tensor computed(const Tensor& t, Scalar dtype) {
  const ScalarType type = dtype == Scalar::float64 ? ScalarType::Double : ScalarType::Float;
  return torch::stable::contiguous(t.scalar_type() == type ? t : torch::stable::to(t, type));
}

}  // namespace bunit
