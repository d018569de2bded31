#include "cuda/finish.h"

namespace bunit::gpu {
namespace {

constexpr int kThreads = 128;

// Chan, Golub and LeVeque's update of mean and squared distances.
__device__ Moments merged(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0.f) return a;
  const float delta = b.mean - a.mean;
  return {a.mean + delta * (b.count / count),
          a.m2 + b.m2 + delta * delta * (a.count * (b.count / count)), count};
}

__global__ void __launch_bounds__(kThreads)
    finish_moments_kernel(const Moments* moments, int64_t parts, int channels, float eps,
                          float* stats, int64_t stride) {
  __shared__ Moments shared[kThreads];
  const int c = int(blockIdx.x), t = int(threadIdx.x);
  Moments own{0.f, 0.f, 0.f};
  for (int64_t part = t; part < parts; part += kThreads) {
    own = merged(own, moments[part * channels + c]);
  }
  shared[t] = own;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (t < width) own = merged(own, shared[t + width]), shared[t] = own;
    __syncthreads();
  }
  if (t != 0) return;
  stats[c] = own.mean;
  stats[stride + c] = 1.f / sqrtf(own.m2 / own.count + eps);
  stats[2 * stride + c] = own.m2 / (own.count - 1.f);
}

// A block takes kColumns neighbouring sums, and each of its kRows rows of threads every kRows-th
// part, so that a thousand parts are 64 reads one after the other and not a thousand.
constexpr int kColumns = 16, kRows = 16;

struct Outputs {
  void *weight, *bias;
  int64_t weights, biases;
};

template <class T>
__global__ void __launch_bounds__(kColumns* kRows)
    finish_sums_kernel(const __grid_constant__ PartSums sums, const __grid_constant__ Outputs to) {
  __shared__ double shared[kRows][kColumns];
  const int column = int(threadIdx.x) % kColumns, row = int(threadIdx.x) / kColumns;
  const int64_t size = sums.row(to.weights, to.biases);
  int64_t i = int64_t(blockIdx.x) * kColumns + column;
  double total = 0;
  if (i < size) {
#pragma unroll 4
    for (int64_t part = row; part < sums.count; part += kRows) {
      total += double(sums.parts[part * size + i]);
    }
  }
  shared[row][column] = total;
  __syncthreads();
  if (row != 0 || i >= size) return;
#pragma unroll
  for (int r = 1; r < kRows; ++r) total += shared[r][column];
  if (i < to.weights) {
    static_cast<T*>(to.weight)[i] = from_float<T>(float(total));
    return;
  }
  i -= to.weights;
  if (i < to.biases) {
    static_cast<T*>(to.bias)[i] = from_float<T>(float(total));
    return;
  }
  i -= to.biases;
  const NormGrads& norm = sums.norm;
  const int64_t c = i / 2;
  if (i % 2 == 0) {
    norm.beta[c] = float(total);
    norm.mean_g[c] = float(total / norm.count);
  } else {
    norm.gamma[c] = float(total);
    norm.mean_gz[c] = float(total / norm.count);
  }
}

}  // namespace

void finish_moments(const Moments* moments, int64_t parts, int channels, double eps, float* stats,
                    int64_t stride, const Context& on) {
  BUNIT_LAUNCH(finish_moments_kernel, dim3(unsigned(channels)), dim3(kThreads), 0, on.stream,
               moments, parts, channels, float(eps), stats, stride);
  check_launch("finish_moments");
}

void finish_sums(const PartSums& sums, Array weight, Array bias, const Context& on) {
  const Outputs to{weight.data, bias.data, weight.size, bias.size};
  const int64_t size = sums.row(to.weights, to.biases);
  if (size == 0) return;
  const auto launch = [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((finish_sums_kernel<T>), dim3(unsigned(ceil_div(size, kColumns))),
                 dim3(kColumns * kRows), 0, on.stream, sums, to);
  };
  if (weight.data) {
    for_dtype(on.dtype, launch);
  } else {
    launch(float{});
  }
  check_launch("finish_sums");
}

}  // namespace bunit::gpu
