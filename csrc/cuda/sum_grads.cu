#include "cuda/block_sum.cuh"
#include "cuda/norms.h"
#include "cuda/rows.cuh"

namespace bunit::gpu {
namespace {

struct SumGrads {
  View grad, z;
  DeviceNorm norm;
  Activation activation;
  Rows rows;
  int64_t count;  // rows that a part takes: images of a channel, or pixels
  float2* parts;  // [parts][channels]
};

// Adds what one vector holds to sums of g and of g * (z - mean).
template <class T, int Values>
__device__ __forceinline__ void add_grads(const SumGrads& call, const ChannelNorm* norms, int step,
                                          int64_t at_grad, int64_t at_z, float (&g)[Values],
                                          float (&gd)[Values]) {
  float grads[Values], zs[Values];
  load_values<T>(call.grad, at_grad, grads);
  load_values<T>(call.z, at_z, zs);
#pragma unroll
  for (int k = 0; k < Values; ++k) {
    const ChannelNorm& norm = norms[k * step];
    const float d = zs[k] - norm.mean;
    const float own =
        activation_grad_inlined(call.activation, d * norm.scale + norm.shift, grads[k]);
    g[k] += own;
    gd[k] += own * d;
  }
}

// A block takes a channel, and images [part * count, (part + 1) * count) of it.
template <class T, int Values>
__global__ void __launch_bounds__(Rows::kThreads)
    sum_planes_kernel(const __grid_constant__ SumGrads call) {
  __shared__ float shared[Rows::kThreads / 32 * 2];
  const Rows& rows = call.rows;
  const int c = int(blockIdx.x % unsigned(call.z.c));
  const int64_t part = blockIdx.x / unsigned(call.z.c);
  const ChannelNorm norm(call.norm, c);
  float g[Values] = {}, gd[Values] = {};
  if (rows.row() < rows.at_once()) {
    const int64_t end = min(int64_t(call.z.n), (part + 1) * call.count);
    for (int64_t n = part * call.count + rows.row(); n < end; n += rows.at_once()) {
      for (int i = rows.lane(); i < rows.vectors; i += rows.lanes) {
        add_grads<T, Values>(call, &norm, 0, place_of<Values>(call.grad, int(n), c, i),
                             place_of<Values>(call.z, int(n), c, i), g, gd);
      }
    }
  }
  float sums[2] = {};
#pragma unroll
  for (int k = 0; k < Values; ++k) sums[0] += g[k], sums[1] += gd[k];
  block_sum<Rows::kThreads>(sums, shared);
  if (threadIdx.x == 0) {
    call.parts[part * call.z.c + c] = make_float2(sums[0], sums[1] * norm.inv_std);
  }
}

// A block takes a warp's width of channels of pixels [part * count, (part + 1) * count).
template <class T, int Values>
__global__ void __launch_bounds__(Rows::kThreads, 4)
    sum_pixels_kernel(const __grid_constant__ SumGrads call) {
  __shared__ float shared[Rows::kThreads][2 * Values];
  const Rows& rows = call.rows;
  const unsigned groups = unsigned((rows.vectors + rows.lanes - 1) / rows.lanes);
  const int64_t part = blockIdx.x / groups, end = min(rows.count, (part + 1) * call.count);
  const int v = int(blockIdx.x % groups) * rows.lanes + rows.lane();
  const bool active = v < rows.vectors && rows.row() < rows.at_once();
  ChannelNorm norms[Values];
  float g[Values] = {}, gd[Values] = {};
  if (active) {
#pragma unroll
    for (int k = 0; k < Values; ++k) norms[k] = ChannelNorm(call.norm, v * Values + k);
    for (int64_t p = part * call.count + rows.row(); p < end; p += rows.at_once()) {
      const int64_t at = p * call.z.c + v * Values;
      add_grads<T, Values>(call, norms, 1, at, at, g, gd);
    }
  }
#pragma unroll
  for (int k = 0; k < Values; ++k) {
    shared[threadIdx.x][2 * k] = g[k];
    shared[threadIdx.x][2 * k + 1] = gd[k];
  }
  __syncthreads();
  if (!active || rows.row() != 0) return;
#pragma unroll
  for (int k = 0; k < Values; ++k) {
    float2 total = make_float2(g[k], gd[k]);
    for (int r = 1; r < rows.at_once(); ++r) {
      total.x += shared[r * rows.lanes + rows.lane()][2 * k];
      total.y += shared[r * rows.lanes + rows.lane()][2 * k + 1];
    }
    const int c = v * Values + k;
    call.parts[part * call.z.c + c] = make_float2(total.x, total.y * call.norm.inv_std[c]);
  }
}

}  // namespace

void sum_grads(const View& grad, const View& z, const DeviceNorm& norm, Activation activation,
               const NormGrads& to, const Context& on) {
  const Walk walk = walk_of({&grad, &z}, element_size(on.dtype));
  SumGrads call{grad, z, norm, activation, walk.rows, 0, nullptr};
  const int64_t rows = walk.rows.inside ? walk.rows.count : z.n;
  const int64_t groups = walk.rows.inside ? ceil_div(walk.rows.vectors, walk.rows.lanes) : z.c;
  const int64_t wanted = ceil_div(int64_t(processors()) * Rows::kBlocks, groups);
  // Every row of threads gets one to read at least.
  const int64_t most = ceil_div(rows, Rows::kThreads / walk.rows.lanes);
  call.count = ceil_div(rows, std::min(wanted, most));
  const int64_t parts = ceil_div(rows, call.count);
  float* const sums = on.workspace(parts * z.c * 2);
  call.parts = reinterpret_cast<float2*>(sums);
  for_values(on.dtype, walk.wide, [&](auto type, auto values) {
    using T = decltype(type);
    constexpr int kValues = decltype(values)::value;
    const dim3 blocks(unsigned(parts * groups));
    if (walk.rows.inside) {
      BUNIT_LAUNCH((sum_pixels_kernel<T, kValues>), blocks, dim3(Rows::kThreads), 0, on.stream,
                   call);
    } else {
      BUNIT_LAUNCH((sum_planes_kernel<T, kValues>), blocks, dim3(Rows::kThreads), 0, on.stream,
                   call);
    }
  });
  check_launch("sum_grads");
  finish_sums({sums, parts, z.c, to}, {}, {}, on);
}

}  // namespace bunit::gpu
