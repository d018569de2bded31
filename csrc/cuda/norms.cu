#include "cuda/norms.h"

#include <algorithm>

#include "cuda/block_sum.cuh"

namespace bunit::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kPixels = 4096;  // of a channel that a block sums up

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
                          const float* gamma, float* stats, int64_t stride, float* scale) {
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
  const Moments& all = own;
  const float inv_std = 1.f / sqrtf(all.m2 / all.count + eps);
  stats[c] = all.mean;
  stats[stride + c] = inv_std;
  stats[2 * stride + c] = all.m2 / (all.count - 1.f);
  scale[c] = gamma[c] * inv_std;
}

__global__ void __launch_bounds__(kThreads)
    scale_kernel(const float* gamma, const float* inv_std, int channels, float* out) {
  const int c = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (c < channels) out[c] = gamma[c] * inv_std[c];
}

// Goes through values in the order in which y holds them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    apply_norm_kernel(const __grid_constant__ View z, const __grid_constant__ View y,
                      const __grid_constant__ View residual,
                      const __grid_constant__ DeviceNorm norm, Activation activation,
                      Activation after_residual, bool channels_inside) {
  const int64_t all = int64_t(y.n) * y.c * y.h * y.w;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    int64_t rest = i;
    int c = 0;
    if (channels_inside) c = int(rest % y.c), rest /= y.c;
    const int column = int(rest % y.w);
    rest /= y.w;
    const int line = int(rest % y.h);
    rest /= y.h;
    if (!channels_inside) c = int(rest % y.c), rest /= y.c;
    const int n = int(rest);
    float out = z.read<T>(z.offset(n, c, line, column));
    if (norm.mean) out = (out - norm.mean[c]) * norm.scale[c] + norm.shift[c];
    out = activate(activation, out);
    if (residual.data) {
      out += residual.read<T>(residual.offset(n, c, line, column));
      out = activate(after_residual, out);
    }
    y.write<T>(y.offset(n, c, line, column), out);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_grads_kernel(const __grid_constant__ View grad, const __grid_constant__ View z,
                     const __grid_constant__ DeviceNorm norm, Activation activation, int64_t pixels,
                     float2* parts) {
  __shared__ float shared[kThreads / 32 * 2];
  const int c = int(blockIdx.x % unsigned(z.c)), part = int(blockIdx.x / unsigned(z.c));
  const int64_t all = int64_t(z.n) * z.h * z.w, end = min(all, (part + 1) * pixels);
  float sums[2] = {};
  for (int64_t p = part * pixels + threadIdx.x; p < end; p += kThreads) {
    const int column = int(p % z.w), line = int(p / z.w % z.h), n = int(p / z.w / z.h);
    const float d = z.read<T>(z.offset(n, c, line, column)) - norm.mean[c];
    const float g = activation_grad(activation, d * norm.scale[c] + norm.shift[c],
                                    grad.read<T>(grad.offset(n, c, line, column)));
    sums[0] += g;
    sums[1] += g * d;
  }
  block_sum<kThreads>(sums, shared);
  if (threadIdx.x == 0) {
    parts[int64_t(part) * z.c + c] = make_float2(sums[0], sums[1] * norm.inv_std[c]);
  }
}

__global__ void __launch_bounds__(kThreads)
    finish_sums_kernel(const float2* parts, int count, int channels, double values,
                       float* grad_gamma, float* grad_beta, float* mean_g, float* mean_gz) {
  const int c = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (c >= channels) return;
  double g = 0, gz = 0;
  for (int part = 0; part < count; ++part) {
    const float2 own = parts[int64_t(part) * channels + c];
    g += double(own.x);
    gz += double(own.y);
  }
  grad_beta[c] = float(g);
  grad_gamma[c] = float(gz);
  mean_g[c] = float(g / values);
  mean_gz[c] = float(gz / values);
}

}  // namespace

void finish_moments(const Moments* moments, int64_t parts, int channels, double eps,
                    const float* gamma, float* stats, int64_t stride, float* scale,
                    cudaStream_t stream) {
  BUNIT_LAUNCH(finish_moments_kernel, dim3(unsigned(channels)), dim3(kThreads), 0, stream, moments,
               parts, channels, float(eps), gamma, stats, stride, scale);
  check_launch("finish_moments");
}

void scale_of(const float* gamma, const float* inv_std, int channels, float* out,
              cudaStream_t stream) {
  BUNIT_LAUNCH(scale_kernel, dim3(unsigned(ceil_div(channels, kThreads))), dim3(kThreads), 0,
               stream, gamma, inv_std, channels, out);
  check_launch("scale_of");
}

void apply_norm(const View& z, const View& y, const View& residual, const DeviceNorm& norm,
                Activation activation, Activation after_residual, const Tensor& like,
                cudaStream_t stream) {
  const int64_t all = int64_t(y.n) * y.c * y.h * y.w;
  const unsigned blocks = unsigned(std::min<int64_t>(ceil_div(all, kThreads), 132 * 64));
  for_dtype(like, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((apply_norm_kernel<T>), dim3(blocks), dim3(kThreads), 0, stream, z, y, residual,
                 norm, activation, after_residual, y.stride_c == 1);
  });
  check_launch("apply_norm");
}

void sum_grads(const View& grad, const View& z, const DeviceNorm& norm, Activation activation,
               const Tensor& like, float* grad_gamma, float* grad_beta, float* mean_g,
               float* mean_gz, cudaStream_t stream) {
  const int64_t all = int64_t(z.n) * z.h * z.w;
  const int64_t parts = std::clamp<int64_t>(all / kPixels, 1, 256);
  const int64_t pixels = (all + parts - 1) / parts;
  Tensor sums = new_tensor(like, {parts, z.c, 2}, ScalarType::Float);
  float2* to = reinterpret_cast<float2*>(floats(sums));
  for_dtype(like, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((sum_grads_kernel<T>), dim3(unsigned(parts * z.c)), dim3(kThreads), 0, stream,
                 grad, z, norm, activation, pixels, to);
  });
  check_launch("sum_grads");
  BUNIT_LAUNCH(finish_sums_kernel, dim3(unsigned(ceil_div(z.c, kThreads))), dim3(kThreads), 0,
               stream, to, int(parts), z.c, double(all), grad_gamma, grad_beta, mean_g, mean_gz);
  check_launch("finish_sums");
}

}  // namespace bunit::gpu
