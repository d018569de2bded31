// Units of any widths, depth, kernel and dilation.
#pragma once

#include "cuda/accumulate.cuh"
#include "cuda/unit_tiles.cuh"

namespace bunit::gpu {

__device__ inline int weight_floats(const Kind& kind, int level) {
  return round_up(int(kind.block(level)), 4);
}

// Of one unit, as [blocks of channels][taps][channels of the block].
template <class T>
__device__ void pack_weights(const void* source, int64_t begin, int c_out, int taps, float* to) {
  const T* from = static_cast<const T*>(source) + begin;
  for (int i = int(threadIdx.x); i < c_out * taps; i += Tiling::kThreads) {
    const int c = i / taps, t = i % taps, block = c / kChannels * kChannels;
    const int width = min(kChannels, c_out - block);
    to[block * taps + t * width + c - block] = to_float(from[i]);
  }
}

// One level of one unit. `out` takes what the level gives: activated, with zeros outside the image,
// for the level after; for the last level only where it is staged.
template <class T>
__device__ __forceinline__ void run_general_level(const UnitForwardCall& call, const Tiling& tiling,
                                                  const Job& job, int level, int unit,
                                                  const Region& from, const Region& to, int height,
                                                  int width, const float* in, const float* weights,
                                                  float* out, const Planes& planes) {
  const Kind& kind = job.run.kind();
  const int stride = level == 0 ? call.stride : 1;
  const int c_in = kind.widths[level], c_out = kind.widths[level + 1], images = job.images;
  const bool last = level == call.depth - 1;
  const Taps taps{kind.kernel, call.dilation, stride, from.w, images * from.h * from.w};
  const int first_channel = job.channel(level + 1) + unit * c_out;
  const T* bias = static_cast<const T*>(call.biases[level]);
  for (int c0 = 0; c0 < c_out; c0 += kChannels) {
    for_count(min(kChannels, c_out - c0), [&](auto count) {
      constexpr int C = decltype(count)::value, R = strip_rows(C);
      const Divider across(to.w), down((to.h + R - 1) / R);
#pragma unroll 1
      for (int i = int(threadIdx.x); i < images * int(down.by) * to.w; i += Tiling::kThreads) {
        int image = i;
        const int x = across.split(image), y = down.split(image) * R;
        float acc[C][R];
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const float b = bias ? to_float(bias[first_channel + c0 + c]) : 0.f;
#pragma unroll
          for (int r = 0; r < R; ++r) acc[c][r] = b;
        }
        accumulate(in + (image * from.h + y * stride) * from.w + x * stride, taps, c_in,
                   weights + c0 * c_in * kind.kernel * kind.kernel, acc);
        const int column = to.x + x;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int line = to.y + y + r;
          if (y + r >= to.h) continue;
          const bool inside = line >= 0 && line < height && column >= 0 && column < width;
#pragma unroll
          for (int c = 0; c < C; ++c) {
            if (!last || tiling.staged) {
              const float v = last ? acc[c][r] : activate(call.hidden, acc[c][r]);
              out[(c0 + c) * planes.plane + image * planes.image + (y + r) * planes.pitch + x] =
                  inside ? v : 0.f;
            } else if (inside) {
              float v = activate(call.out, acc[c][r]);
              const int channel = first_channel + c0 + c;
              if (call.residual.data) {
                const View& res = call.residual;
                v += res.read<T>(res.offset(job.n0 + image, channel, line, column));
                v = activate(call.after_residual, v);
              }
              call.y.write<T>(call.y.offset(job.n0 + image, channel, line, column), v);
            }
          }
        }
      }
    });
  }
}

template <class T>
__device__ __forceinline__ void run_general(const UnitForwardCall& call, const Tiling& tiling,
                                            const Job& job, float* shared) {
  const Kind& kind = job.run.kind();
  int unit_weights = 0;
  for (int l = 0; l < call.depth; ++l) {
    for (int u = 0; u < job.units; ++u) {
      pack_weights<T>(call.weights[l], job.run.weight(l) + (job.unit + u) * kind.block(l),
                      kind.widths[l + 1], kind.widths[l] * kind.kernel * kind.kernel,
                      shared + unit_weights * job.units + u * weight_floats(kind, l));
    }
    unit_weights += weight_floats(kind, l);
  }
  float* in = shared + tiling.weights;
  float* out = in + tiling.first;
  Region from = input_of(kind, call.dilation, call.stride,
                         needed(kind, call.depth, call.dilation, 0, job.tile));
  int image = from.h * from.w;
  load_tile<T>(call.x, tiling.x_vector, job.channel(0), job.units * kind.widths[0], job.n0,
               job.images, from, in, {from.w, image, job.images * image, 0});
  __syncthreads();

  const float* weights = shared;
  int height = call.x.h, width = call.x.w;
  for (int l = 0; l < call.depth; ++l) {
    const Region to = needed(kind, call.depth, call.dilation, l, job.tile);
    const int stride = l == 0 ? call.stride : 1;
    height = level_size(height, kind, call.dilation, stride);
    width = level_size(width, kind, call.dilation, stride);
    const int in_plane = job.images * image;
    image = to.h * to.w;
    const Planes planes =
        l == call.depth - 1 ? tiling.out : Planes{to.w, image, job.images * image, 0};
    for (int u = 0; u < job.units; ++u) {
      run_general_level<T>(call, tiling, job, l, u, from, to, height, width,
                           in + u * kind.widths[l] * in_plane, weights,
                           out + u * kind.widths[l + 1] * planes.plane, planes);
      weights += weight_floats(kind, l);
    }
    if (l < call.depth - 1) {
      __syncthreads();
    }
    from = to;
    float* swap = in;
    in = out;
    out = swap;
  }
}

}  // namespace bunit::gpu
