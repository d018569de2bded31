// The batch normalisation after one level, as the kernels take it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/calls.h"
#include "pack.h"
#include "tensors.h"

namespace bunit {

// Values of one level's channels in the compute type, some rows of them.
class ChannelRows {
 public:
  ChannelRows(size_t rows, size_t channels, Scalar dtype)
      : channels_(channels), wide_(dtype == Scalar::float64), values_(rows * channels) {}

  void set(size_t row, size_t channel, double value) {
    const size_t i = row * channels_ + channel;
    if (wide_) {
      values_[i] = value;
    } else {
      reinterpret_cast<float*>(values_.data())[i] = float(value);
    }
  }
  double get(size_t row, size_t channel) const {
    const size_t i = row * channels_ + channel;
    return wide_ ? values_[i] : reinterpret_cast<const float*>(values_.data())[i];
  }
  const void* row(size_t i) const {
    return reinterpret_cast<const char*>(values_.data()) + i * channels_ * (wide_ ? 8 : 4);
  }

 private:
  size_t channels_;
  bool wide_;
  std::vector<double> values_;  // as storage
};

// Mean, scale and shift of one level's norm, and 1 / standard deviation; of channels in the order
// of the images that the norm is for, which may be shuffled.
class LevelNorm {
 public:
  LevelNorm(const Tensor& gamma, const Tensor& beta, Scalar dtype)
      : gamma_(gamma), beta_(beta), rows_(4, size_t(gamma.numel()), dtype) {}

  // For channel `channel` of the parameters, which the images have at `place`.
  void set(int64_t channel, int64_t place, double mean, double inv_std) {
    const size_t c = size_t(place);
    rows_.set(0, c, mean);
    rows_.set(1, c, gamma_[channel] * inv_std);
    rows_.set(2, c, beta_[channel]);
    rows_.set(3, c, inv_std);
  }
  double scale(int64_t channel) const { return value(1, channel); }
  // Of the normalisation written as z * scale + bias.
  double bias(int64_t channel) const {
    return value(2, channel) - value(0, channel) * scale(channel);
  }
  Norm norm() const { return {rows_.row(0), rows_.row(1), rows_.row(2)}; }
  const void* inv_std() const { return rows_.row(3); }

 private:
  double value(size_t row, int64_t channel) const { return rows_.get(row, size_t(channel)); }

  Values<double> gamma_, beta_;
  ChannelRows rows_;
};

}  // namespace bunit
