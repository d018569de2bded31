#include "cuda/norms.h"
#include "cuda/rows.cuh"

namespace bunit::gpu {
namespace {

struct Pointwise {
  View z, y, residual;
  DeviceNorm norm;
  Activation activation, after_residual;
  Rows rows;
};

template <class T, int Values>
__device__ __forceinline__ void apply_vector(const Pointwise& call, const ChannelNorm* norms,
                                             int norm_step, int64_t from, int64_t to,
                                             int64_t added) {
  float values[Values], more[Values];
  load_values<T>(call.z, from, values);
  if (call.residual.data) load_values<T>(call.residual, added, more);
#pragma unroll
  for (int k = 0; k < Values; ++k) {
    const ChannelNorm& norm = norms[k * norm_step];
    float out = values[k];
    if (call.norm.mean) out = (out - norm.mean) * norm.scale + norm.shift;
    out = activate_inlined(call.activation, out);
    if (call.residual.data) out = activate_inlined(call.after_residual, out + more[k]);
    values[k] = out;
  }
  store_values<T>(call.y, to, values);
}

template <class T, int Values>
__global__ void __launch_bounds__(Rows::kThreads)
    apply_norm_kernel(const __grid_constant__ Pointwise call) {
  const Rows& rows = call.rows;
  const int64_t step = int64_t(gridDim.x) * rows.at_once();
  const int64_t first = int64_t(blockIdx.x) * rows.at_once() + rows.row();
  if (rows.row() >= rows.at_once()) return;
  if (rows.inside) {
    for (int v = rows.lane(); v < rows.vectors; v += rows.lanes) {
      ChannelNorm norms[Values];
#pragma unroll
      for (int k = 0; k < Values; ++k) {
        if (call.norm.mean) norms[k] = ChannelNorm(call.norm, v * Values + k);
      }
      for (int64_t p = first; p < rows.count; p += step) {
        const int64_t at = p * call.y.c + v * Values;
        apply_vector<T, Values>(call, norms, 1, at, at, at);
      }
    }
    return;
  }
  for (int64_t p = first; p < rows.count; p += step) {
    const int c = int(p % call.y.c), n = int(p / call.y.c);
    const ChannelNorm norm = call.norm.mean ? ChannelNorm(call.norm, c) : ChannelNorm();
    for (int i = rows.lane(); i < rows.vectors; i += rows.lanes) {
      apply_vector<T, Values>(call, &norm, 0, place_of<Values>(call.z, n, c, i),
                              place_of<Values>(call.y, n, c, i),
                              call.residual.data ? place_of<Values>(call.residual, n, c, i) : 0);
    }
  }
}

}  // namespace

void apply_norm(const View& z, const View& y, const View& residual, const DeviceNorm& norm,
                Activation activation, Activation after_residual, const Context& on) {
  const Walk walk = walk_of({&z, &y, &residual}, element_size(on.dtype));
  const Pointwise call{z, y, residual, norm, activation, after_residual, walk.rows};
  const int64_t all = ceil_div(walk.rows.count, Rows::kThreads / walk.rows.lanes);
  const unsigned blocks = unsigned(std::min<int64_t>(all, int64_t(processors()) * Rows::kBlocks));
  for_values(on.dtype, walk.wide, [&](auto type, auto values) {
    using T = decltype(type);
    BUNIT_LAUNCH((apply_norm_kernel<T, decltype(values)::value>), dim3(blocks),
                 dim3(Rows::kThreads), 0, on.stream, call);
  });
  check_launch("apply_norm");
}

}  // namespace bunit::gpu
