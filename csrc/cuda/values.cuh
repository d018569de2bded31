// Values on the device: conversions, images, activations and what they do to a gradient.
#pragma once

#include <math.h>

#include <cstdint>

#include "cpu/kernels/calls.h"
#include "cuda/portable.h"

namespace bunit::gpu {

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float to_float(__half v) { return __half2float(v); }

template <class T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16(v);
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half(v);
}

// A tensor [N, C, H, W] of any strides, in elements; `data` is null where it is not given.
struct View {
  const void* data;
  int n, c, h, w;
  int64_t stride_n, stride_c, stride_h, stride_w;

  __device__ int64_t offset(int in, int ic, int iy, int ix) const {
    return in * stride_n + ic * stride_c + iy * stride_h + ix * stride_w;
  }
  template <class T>
  __device__ float read(int64_t at) const {
    return to_float(static_cast<const T*>(data)[at]);
  }
  template <class T>
  __device__ void write(int64_t at, float value) const {
    static_cast<T*>(const_cast<void*>(data))[at] = from_float<T>(value);
  }
};

// Comparisons are written so that NaN takes the branch that returns it.
__device__ inline float clamp_relu(float x) {
#ifdef __CUDA_ARCH__
  float y;  // in one instruction; fmaxf would lose NaN
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
#else
  return x < 0.f ? 0.f : x;
#endif
}
__device__ inline float clamp_six(float x) { return x > 6.f ? 6.f : x; }

// Activations of a few instructions; the others are too much code to repeat for each value.
__host__ __device__ inline bool few_instructions(Activation name) {
  return name == Activation::identity || name == Activation::relu;
}

__device__ __forceinline__ float activate_inlined(Activation name, float x) {
  switch (name) {
    case Activation::identity:
      return x;
    case Activation::relu:
      return clamp_relu(x);
    case Activation::relu6:
      return clamp_six(clamp_relu(x));
    case Activation::leaky_relu:
      return x > 0.f ? x : x * 0.01f;
    case Activation::gelu:
      return x * 0.5f * (1.f + erff(x * 0.70710678118654752f));
    case Activation::silu:
      return x / (1.f + expf(-x));
    default:
      return x * clamp_six(clamp_relu(x + 3.f)) / 6.f;  // hardswish
  }
}

// grad * activation'(x), which is 0 where the derivative is, be the gradient NaN or not (as in
// PyTorch's backward operators).
__device__ __forceinline__ float activation_grad_inlined(Activation name, float x, float grad) {
  switch (name) {
    case Activation::identity:
      return grad;
    case Activation::relu:
      return x <= 0.f ? 0.f : grad;
    case Activation::relu6:
      return x <= 0.f || x >= 6.f ? 0.f : grad;
    case Activation::leaky_relu:
      return x > 0.f ? grad : grad * 0.01f;
    case Activation::gelu: {
      const float density = 0.39894228040143268f * expf(-0.5f * x * x);
      return grad * (0.5f * (1.f + erff(x * 0.70710678118654752f)) + x * density);
    }
    case Activation::silu: {
      const float s = 1.f / (1.f + expf(-x));
      return grad * (s * (1.f + x * (1.f - s)));
    }
    default:  // hardswish
      return x <= -3.f ? 0.f : x >= 3.f ? grad : grad * (x / 3.f + 0.5f);
  }
}

// The rest are called: inlined wherever a tile's values are read they were most of the code. Passes
// over whole images have them inlined, as values that live across a call would spill there.
__device__ __attribute__((noinline)) inline float activate_called(Activation name, float x) {
  return activate_inlined(name, x);
}
__device__ __attribute__((noinline)) inline float activation_grad_called(Activation name, float x,
                                                                         float grad) {
  return activation_grad_inlined(name, x, grad);
}
__device__ __forceinline__ float activate(Activation name, float x) {
  if (name == Activation::identity) return x;
  return name == Activation::relu ? clamp_relu(x) : activate_called(name, x);
}
__device__ __forceinline__ float activation_grad(Activation name, float x, float grad) {
  if (name == Activation::identity) return grad;
  if (name == Activation::relu) return x <= 0.f ? 0.f : grad;
  return activation_grad_called(name, x, grad);
}

// One level's batch normalisation on the device, a value a channel:
// (z - mean) * (gamma * inv_std) + beta.
struct DeviceNorm {
  const float* mean;  // null: none
  const float *gamma, *beta, *inv_std;
};

// The same of one channel, in registers.
struct ChannelNorm {
  float mean, scale, shift, inv_std;

  __device__ explicit ChannelNorm(const DeviceNorm& norm, int c)
      : mean(norm.mean[c]),
        scale(norm.gamma[c] * norm.inv_std[c]),
        shift(norm.beta[c]),
        inv_std(norm.inv_std[c]) {}
  __device__ ChannelNorm() : mean(0.f), scale(1.f), shift(0.f), inv_std(1.f) {}
};

// How a value is read: as it is; normalised and activated; or, for the gradient of a convolution's
// output from that after its norm, scale * (g - mean_g - zhat * mean_gz) with g = grad *
// activation'(n), zhat = (z - mean) * inv_std and n = (z - mean) * scale + shift.
struct Source {
  View view;
  View z;  // with `mean_g`: what the norm was given
  DeviceNorm norm;
  Activation activation;
  const float *mean_g, *mean_gz;

  // What reading a channel takes, so that it is looked up once for many pixels.
  struct Channel {
    int c;
    ChannelNorm norm;
    float mean_g, mean_gz;
  };
  __device__ Channel channel(int c) const {
    Channel found{c, ChannelNorm(), 0.f, 0.f};
    if (norm.mean) found.norm = ChannelNorm(norm, c);
    if (mean_g) found.mean_g = mean_g[c], found.mean_gz = mean_gz[c];
    return found;
  }

  template <class T>
  __device__ float read(const Channel& of, int n, int y, int x) const {
    const float value = view.read<T>(view.offset(n, of.c, y, x));
    if (!norm.mean) return value;
    const ChannelNorm& own = of.norm;
    if (!mean_g) return activate(activation, (value - own.mean) * own.scale + own.shift);
    const float d = z.read<T>(z.offset(n, of.c, y, x)) - own.mean;
    const float g = activation_grad(activation, d * own.scale + own.shift, value);
    return own.scale * (g - of.mean_g - d * own.inv_std * of.mean_gz);
  }
  template <class T>
  __device__ float read(int n, int c, int y, int x) const {
    return read<T>(channel(c), n, y, x);
  }
};

}  // namespace bunit::gpu
