// Small helpers of the plans: offsets, packed weights, splitting, merging.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <vector>

#include "stack.h"
#include "tensors.h"

namespace bunit {

constexpr int kChannelBlock = 4;  // kBlock of kernels/conv_core.h

// Elements of a plane: whole vectors, and not a multiple of 4 KiB, where planes would evict one
// another from the cache.
inline int64_t padded_plane(int64_t elements, int64_t lanes) {
  const int64_t vectors = (elements + lanes - 1) / lanes;
  return (vectors + (vectors % 32 == 0 ? 1 : 0)) * lanes;
}

// Units that one item takes: where channels lie next to each other, those that share cache lines.
inline int64_t units_per_item(const Image& x, int64_t units) {
  if (x.stride_c != 1 || x.h * x.w <= 1 || x.c == 0) return 1;
  const int64_t line = 64 / (x.dtype == Scalar::float64 ? 8 : x.dtype == Scalar::float32 ? 4 : 2);
  return std::max<int64_t>(1, line * units / x.c);
}

// How many row segments an image is split into, so that there are `wanted` items or nearly: no more
// than `rows`, each of `least` pixels or more.
inline int64_t segments_for(int64_t items, int64_t wanted, int64_t rows, int64_t pixels,
                            int64_t least) {
  const int64_t most = std::max<int64_t>(1, std::min(rows, pixels / least));
  return std::clamp<int64_t>((wanted + items - 1) / items, 1, most);
}

// Where tap (c, ky, kx) of a level finds its pixel relative to the output's.
inline std::vector<int64_t> tap_offsets(const Unit& unit, int level, int64_t stride,
                                        int64_t dilation, int64_t phases, int64_t plane,
                                        int64_t row) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < unit.widths[level]; ++c) {
    for (int64_t ky = 0; ky < unit.kernel; ++ky) {
      for (int64_t kx = 0; kx < unit.kernel; ++kx) {
        const int64_t y = ky * dilation, x = kx * dilation;
        const int64_t phase = (c * phases + y % stride) * phases + x % stride;
        offsets.push_back(phase * plane + y / stride * row + x / stride);
      }
    }
  }
  return offsets;
}

inline int64_t packed_size(const Unit& unit, int level) {
  return int64_t(unit.widths[level]) * unit.widths[level + 1] * unit.kernel * unit.kernel;
}

// Values of a tensor, of any of the dtypes, as float or double.
class Values {
 public:
  explicit Values(const Tensor& t)
      : held_(t.is_contiguous() ? t : torch::stable::contiguous(t)),
        data_(held_.const_data_ptr()),
        dtype_(scalar_of(t)) {}

  double operator[](int64_t i) const {
    switch (dtype_) {
      case Scalar::float32:
        return static_cast<const float*>(data_)[i];
      case Scalar::float64:
        return static_cast<const double*>(data_)[i];
      case Scalar::bfloat16:
        return float(static_cast<const c10::BFloat16*>(data_)[i]);
      default:
        return float(static_cast<const c10::Half*>(data_)[i]);
    }
  }

 private:
  Tensor held_;
  const void* data_;
  Scalar dtype_;
};

// Writes one value to a contiguous tensor, rounded to nearest.
inline void narrow(double value, Tensor& out, int64_t i) {
  void* data = out.mutable_data_ptr();
  switch (scalar_of(out)) {
    case Scalar::float32:
      static_cast<float*>(data)[i] = float(value);
      return;
    case Scalar::float64:
      static_cast<double*>(data)[i] = value;
      return;
    case Scalar::bfloat16:
      static_cast<c10::BFloat16*>(data)[i] = c10::BFloat16(float(value));
      return;
    default:
      static_cast<c10::Half*>(data)[i] = c10::Half(float(value));
  }
}

// Writes values one after the other in the compute type.
class WeightPacker {
 public:
  WeightPacker(void* memory, Scalar dtype) : next_(memory), wide_(dtype == Scalar::float64) {}

  // One unit's block of a level's weight, as [blocks of output channels][taps][block].
  const void* weights(const Values& weight, const Unit& unit, int level) {
    const void* begin = next_;
    const int64_t taps = int64_t(unit.widths[level]) * unit.kernel * unit.kernel;
    for (int64_t c0 = 0; c0 < unit.widths[level + 1]; c0 += kChannelBlock) {
      const int64_t c1 = std::min<int64_t>(c0 + kChannelBlock, unit.widths[level + 1]);
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t c = c0; c < c1; ++c) put(weight[unit.weights[level] + c * taps + t]);
      }
    }
    return begin;
  }

  const void* values(const Values& values, int64_t first, int64_t count) {
    const void* begin = next_;
    for (int64_t i = 0; i < count; ++i) put(values[first + i]);
    return begin;
  }

  void put(double value) {
    if (wide_) {
      double* at = static_cast<double*>(next_);
      *at = value;
      next_ = at + 1;
    } else {
      float* at = static_cast<float*>(next_);
      *at = float(value);
      next_ = at + 1;
    }
  }

  const void* here() const { return next_; }

 private:
  void* next_;
  bool wide_;
};

// Parts [n * segments][channels] merged in their order, so that the result does not depend on the
// number of threads (Chan, Golub and LeVeque's update of mean and squared distances).
inline std::vector<Moments> merge_moments(const std::vector<Moments>& parts, int64_t channels) {
  std::vector<Moments> merged(size_t(channels), Moments{});
  for (size_t i = 0; i < parts.size(); ++i) {
    Moments& into = merged[i % size_t(channels)];
    const Moments& more = parts[i];
    const double count = into.count + more.count;
    const double delta = more.mean - into.mean;
    into.mean += delta * more.count / count;
    into.m2 += more.m2 + delta * delta * into.count * more.count / count;
    into.count = count;
  }
  return merged;
}

}  // namespace bunit
