// A block takes one input channel, up to four output channels and up to nine taps of one unit, and
// a part of all pixels; each thread keeps 36 sums in registers, 36 multiply-adds for 13 loads.
// Parts are added up by a second kernel in a fixed order, so that results repeat.

#include "cuda/level_grad_weight.h"

#include <algorithm>

#include "cuda/accumulate.cuh"
#include "cuda/block_sum.cuh"

namespace bunit::gpu {
namespace {

constexpr int kThreads = 128, kTaps = 9;
// Enough blocks to fill a GPU of 132 processors several times over, of enough pixels to be worth
// it.
constexpr int64_t kBlocks = 132 * 16, kPixels = 1024;

struct Items {
  int taps, blocks;  // groups of taps, of output channels

  __host__ __device__ explicit Items(const Kind& kind)
      : taps((kind.kernel * kind.kernel + kTaps - 1) / kTaps),
        blocks((kind.widths[1] + kChannels - 1) / kChannels) {}
  __host__ __device__ int of_unit(const Kind& kind) const { return kind.widths[0] * blocks * taps; }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    level_grad_weight_kernel(const __grid_constant__ LevelGradWeightCall call,
                             const __grid_constant__ Runs runs, int64_t pixels, float* weight_parts,
                             int64_t weight_size, float* bias_parts) {
  __shared__ float shared[kThreads / 32 * kChannels * kTaps];
  const int item = int(blockIdx.x % unsigned(runs.items));
  const int part = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, item);
  const Kind& kind = run.kind();
  const Items items(kind);
  int rest = item - run.first();
  const int t0 = rest % items.taps * kTaps;
  rest /= items.taps;
  const int c0 = rest % items.blocks * kChannels;
  rest /= items.blocks;
  const int ci = rest % kind.widths[0], unit = rest / kind.widths[0];
  const int channels = min(kChannels, kind.widths[1] - c0);
  const int area = kind.kernel * kind.kernel, taps = min(kTaps, area - t0);
  const int first_out = run.channel(1) + unit * kind.widths[1] + c0;
  const int in_channel = run.channel(0) + unit * kind.widths[0] + ci;

  float sums[kChannels * kTaps] = {}, bias[kChannels] = {};
  const View &g = call.grad.view, &x = call.x.view;
  const int64_t all = int64_t(g.n) * g.h * g.w;
  const int64_t end = min(all, (part + 1) * pixels);
  for (int64_t p = part * pixels + threadIdx.x; p < end; p += kThreads) {
    const int column = int(p % g.w), line = int(p / g.w % g.h), n = int(p / g.w / g.h);
    float grads[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      grads[c] = c < channels ? call.grad.read<T>(n, first_out + c, line, column) : 0.f;
      bias[c] += grads[c];
    }
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      if (i >= taps) break;
      const int ky = (t0 + i) / kind.kernel, kx = (t0 + i) % kind.kernel;
      const int y = line * call.stride - kind.pad + ky * call.dilation;
      const int xx = column * call.stride - kind.pad + kx * call.dilation;
      if (y < 0 || y >= x.h || xx < 0 || xx >= x.w) continue;
      const float v = call.x.read<T>(n, in_channel, y, xx);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) sums[c * kTaps + i] += grads[c] * v;
    }
  }
  block_sum<kThreads>(sums, shared);
  const bool with_bias = ci == 0 && t0 == 0;
  if (with_bias) {
    block_sum<kThreads>(bias, shared);
  }
  if (threadIdx.x != 0) return;
  float* to = weight_parts + part * weight_size + run.weight(0) + unit * kind.block(0);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (c >= channels) break;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      if (i < taps) to[((c0 + c) * kind.widths[0] + ci) * area + t0 + i] = sums[c * kTaps + i];
    }
    if (with_bias) bias_parts[int64_t(part) * g.c + first_out + c] = bias[c];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const float* parts, int count, int64_t size, T* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  double total = 0;
  for (int part = 0; part < count; ++part) total += double(parts[part * size + i]);
  out[i] = from_float<T>(float(total));
}

void sum_parts(const float* parts, int64_t count, Tensor& out, cudaStream_t stream) {
  const int64_t size = out.numel();
  if (size == 0) return;
  for_dtype(out, [&](auto type) {
    using T = decltype(type);
    BUNIT_LAUNCH((sum_parts_kernel<T>), dim3(unsigned(ceil_div(size, kThreads))), dim3(kThreads), 0,
                 stream, parts, int(count), size, static_cast<T*>(out.mutable_data_ptr()));
  });
  check_launch("sum_parts");
}

}  // namespace

void level_grad_weight(const Layer& layer, int level, const LevelGradWeightCall& call,
                       const Tensor& like, Tensor& grad_weight, Tensor& grad_bias,
                       cudaStream_t stream) {
  const auto list = layer.level(level, [](const Kind& kind) { return Items(kind).of_unit(kind); });
  const View& g = call.grad.view;
  const int64_t all = int64_t(g.n) * g.h * g.w;
  const int64_t wanted = std::max<int64_t>(1, kBlocks / std::max<int64_t>(1, list->items));
  const int64_t parts = std::clamp<int64_t>(all / kPixels, 1, wanted);
  const int64_t pixels = (all + parts - 1) / parts;
  Tensor weight_parts = new_tensor(like, {parts, grad_weight.numel()}, ScalarType::Float);
  Tensor bias_parts = new_tensor(like, {parts, grad_bias.numel()}, ScalarType::Float);
  for (const Runs& runs : list->launches) {
    STD_TORCH_CHECK(parts * runs.items < (int64_t(1) << 31), "more than 2^31 blocks");
    for_dtype(like, [&](auto type) {
      using T = decltype(type);
      BUNIT_LAUNCH((level_grad_weight_kernel<T>), dim3(unsigned(parts * runs.items)),
                   dim3(kThreads), 0, stream, call, runs, pixels, floats(weight_parts),
                   grad_weight.numel(), floats(bias_parts));
    });
    check_launch("level_grad_weight");
  }
  sum_parts(floats(weight_parts), parts, grad_weight, stream);
  sum_parts(floats(bias_parts), parts, grad_bias, stream);
}

}  // namespace bunit::gpu
