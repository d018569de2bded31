// Small helpers of the plans: offsets, packed weights, splitting, merging.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "stack.h"
#include "tensors.h"

namespace bunit {

constexpr int kChannelBlock = 4;  // kBlock of kernels/conv_flat.h

inline int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Whether so many channels are better worked on a vector of them at a time than a vector of pixels
// or rows. Measured, float32: from 12 on, and with a quarter of a vector's lanes idle at most. (64
// linear units 8-16-8, N=128, AVX2: 100 us by channels, 80 by rows; 32 units 12-24-12: 69 and 85.)
inline bool fills_vectors(int64_t channels, int64_t lanes) {
  return channels >= 12 && channels * 4 >= round_up(channels, lanes) * 3;
}

// Elements of a plane: whole vectors, and not a multiple of 4 KiB, where planes would evict one
// another from the cache.
inline int64_t padded_plane(int64_t elements, int64_t lanes) {
  const int64_t vectors = (elements + lanes - 1) / lanes;
  return (vectors + (vectors % 32 == 0 ? 1 : 0)) * lanes;
}

// Vectors by which planes may be shifted to align them (with_aligned of kernels/planes.h).
constexpr int64_t kPlanesApart = 2;

// What a plan's passes do beside the convolution; with it grows what a row costs however short.
enum class Pass { forward, backward, with_norms };

// Units that one item takes: of interleaved images, the narrower of `channels` channels, those that
// share a cache line of them. Where pixels do not begin with a line, each item meets parts of lines
// at its two ends, so that it takes more of them.
inline int64_t units_per_item(bool interleaved, Scalar dtype, int64_t channels, int64_t units) {
  if (!interleaved) return 1;
  const int64_t size = compute_size(dtype);
  const int64_t lines = channels * size % kLineBytes == 0 ? 1 : 4;
  return std::clamp<int64_t>(lines * kLineBytes / size * units / std::max<int64_t>(1, channels), 1,
                             units);
}

// The most channels that `group` neighbouring units, the first a multiple of `group`, have on side
// `side` of the stack.
inline int64_t group_channels(const Stack& stack, int side, int64_t group) {
  int64_t most = 0;
  const int64_t count = int64_t(stack.units.size());
  for (int64_t first = 0; first < count; first += group) {
    const Unit& last = stack.units[size_t(std::min(first + group, count) - 1)];
    most = std::max(
        most, last.channels[side] + last.widths[side] - stack.units[size_t(first)].channels[side]);
  }
  return most;
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
                                        int64_t row, int64_t lanes) {
  std::vector<int64_t> offsets;
  for (int64_t c = 0; c < unit.widths[level]; ++c) {
    for (int64_t ky = 0; ky < unit.kernel; ++ky) {
      for (int64_t kx = 0; kx < unit.kernel; ++kx) {
        const int64_t y = ky * dilation, x = kx * dilation;
        const int64_t phase = (c * phases + y % stride) * phases + x % stride;
        offsets.push_back(phase * plane + y / stride * row + x / stride * lanes);
      }
    }
  }
  return offsets;
}

// Values of a tensor, of any of the dtypes, in the compute type T.
template <class T>
class Values {
 public:
  explicit Values(const Tensor& t)
      : held_(t.is_contiguous() ? t : torch::stable::contiguous(t)), data_(nullptr) {
    const Scalar dtype = scalar_of(t);
    const void* data = held_.const_data_ptr();
    if (dtype == (sizeof(T) == 8 ? Scalar::float64 : Scalar::float32)) {
      data_ = static_cast<const T*>(data);
      return;
    }
    converted_.reserve(size_t(t.numel()));
    for (int64_t i = 0; i < t.numel(); ++i) {
      switch (dtype) {
        case Scalar::float32:
          converted_.push_back(T(static_cast<const float*>(data)[i]));
          break;
        case Scalar::float64:
          converted_.push_back(T(static_cast<const double*>(data)[i]));
          break;
        case Scalar::bfloat16:
          converted_.push_back(T(float(static_cast<const c10::BFloat16*>(data)[i])));
          break;
        default:
          converted_.push_back(T(float(static_cast<const c10::Half*>(data)[i])));
      }
    }
    data_ = converted_.data();
  }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;

  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  Tensor held_;
  std::vector<T> converted_;
  const T* data_;
};

// A contiguous tensor to write values to, rounded to nearest.
class Narrowed {
 public:
  explicit Narrowed(Tensor& t) : dtype_(scalar_of(t)), data_(t.mutable_data_ptr()) {}

  void set(int64_t i, double value) const { set(i, &value, 1); }

  // Values [first, first + count).
  template <class T>
  void set(int64_t first, const T* values, int64_t count) const {
    switch (dtype_) {
      case Scalar::float32:
        return convert<float>(first, values, count);
      case Scalar::float64:
        return convert<double>(first, values, count);
      case Scalar::bfloat16:
        return convert<c10::BFloat16>(first, values, count);
      default:
        return convert<c10::Half>(first, values, count);
    }
  }

 private:
  template <class To, class T>
  void convert(int64_t first, const T* values, int64_t count) const {
    To* to = static_cast<To*>(data_) + first;
    using Between = std::conditional_t<std::is_same_v<To, double>, double, float>;
    for (int64_t i = 0; i < count; ++i) to[i] = To(Between(values[i]));
  }

  Scalar dtype_;
  void* data_;
};

// Copies one unit's block of a level's weight as [blocks of output channels][taps][block]; returns
// what follows it.
template <class T>
T* pack_weights(const Values<T>& weight, const Unit& unit, int level, T* out) {
  const int64_t taps = int64_t(unit.widths[level]) * unit.kernel * unit.kernel;
  const T* block = &weight[unit.weights[level]];
  for (int64_t c0 = 0; c0 < unit.widths[level + 1]; c0 += kChannelBlock) {
    const int64_t c1 = std::min<int64_t>(c0 + kChannelBlock, unit.widths[level + 1]);
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t c = c0; c < c1; ++c) *out++ = block[c * taps + t];
    }
  }
  return out;
}

// Elements of a 3x3 level's weight as conv_rows takes it in pairs of rows.
inline int64_t pair_weights(int64_t c_in, int64_t c_out) {
  int64_t size = 0;
  for (int64_t c = 0, block; c < c_out; c += block) {
    block = std::min<int64_t>(kChannelBlock, c_out - c);
    size += c_in * block * (block >= kernels().least_paired ? 12 : 9);
  }
  return size;
}

// What Winograd's minimal filtering F(2, 3) makes of three taps.
template <class T>
std::array<T, 4> minimal_filter(T g0, T g1, T g2) {
  return {g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2};
}

// The same of column x of a 3x3 kernel, weight(output, input, tap).
template <class Weight>
auto filtered_column(const Weight& weight, int64_t o, int64_t i, int x) {
  return minimal_filter(weight(o, i, x), weight(o, i, 3 + x), weight(o, i, 6 + x));
}

// weight(output, input, tap) as conv_rows takes it in pairs of rows: blocks of output channels,
// those in pairs as filtered columns [c_in][column][4][block], the others [c_in][tap][block].
// Returns what follows.
template <class T, class Weight>
T* pack_pairs(int64_t c_in, int64_t c_out, const Weight& weight, T* out) {
  for (int64_t first = 0, block; first < c_out; first += block) {
    block = std::min<int64_t>(kChannelBlock, c_out - first);
    for (int64_t i = 0; i < c_in; ++i) {
      if (block < kernels().least_paired) {
        for (int tap = 0; tap < 9; ++tap) {
          for (int64_t o = first; o < first + block; ++o) *out++ = weight(o, i, tap);
        }
        continue;
      }
      for (int x = 0; x < 3; ++x, out += 4 * block) {
        for (int64_t o = 0; o < block; ++o) {
          const std::array<T, 4> turned = filtered_column(weight, first + o, i, x);
          for (int64_t k = 0; k < 4; ++k) out[k * block + o] = turned[size_t(k)];
        }
      }
    }
  }
  return out;
}

// out[first + i] = sum of parts[p * step + i] over `count` parts, in their order; i < size.
template <class T>
void sum_parts(const T* parts, int64_t count, int64_t step, int64_t size, Tensor& out,
               int64_t first = 0) {
  constexpr int64_t kElements = 4096, kAtOnce = 128;
  const Narrowed sums(out);
  for_each_item((size + kElements - 1) / kElements, [&](int64_t item) {
    const int64_t start = item * kElements, end = std::min(size, start + kElements);
    if (count == 1) return sums.set(first + start, parts + start, end - start);
    for (int64_t begin = start; begin < end; begin += kAtOnce) {
      const int64_t n = std::min(kAtOnce, end - begin);
      std::array<double, kAtOnce> totals{};
      for (int64_t part = 0; part < count; ++part) {
        const T* values = parts + part * step + begin;
        for (int64_t i = 0; i < n; ++i) totals[size_t(i)] += double(values[i]);
      }
      sums.set(first + begin, totals.data(), n);
    }
  });
}

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
