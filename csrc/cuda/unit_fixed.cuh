// Units of two levels of 3x3 kernels whose widths are known at compile time (fixed_level.cuh has
// the arithmetic, and what it costs).
#pragma once

#include "cuda/fixed_level.cuh"

namespace bunit::gpu {

template <class L>
__device__ __forceinline__ void activate_few(Activation name, Sums<L>& acc) {
  if (name == Activation::identity) return;
#pragma unroll
  for (int c = 0; c < L::kChannels; ++c) {
#pragma unroll
    for (int r = 0; r < Patches::kRows; ++r) {
#pragma unroll
      for (int x = 0; x < Patches::kColumns; ++x) acc[c][r][x] = clamp_relu(acc[c][r][x]);
    }
  }
}

// The part of the hidden level's image that a tile needs and, within shared memory, where it lies.
struct Hidden {
  Region region;
  int y, x;
  bool clipped;  // around it are zeros
};
__device__ inline Hidden hidden_of(const UnitForwardCall& call, const Kind& kind,
                                   const Region& tile) {
  const Region all = needed(kind, 2, 1, 0, tile);
  const int height = level_size(call.x.h, kind, 1, call.stride);
  const int width = level_size(call.x.w, kind, 1, call.stride);
  const int y0 = max(all.y, 0), x0 = max(all.x, 0);
  const int y1 = min(all.y + all.h, height), x1 = min(all.x + all.w, width);
  const Region region{y0, x0, max(y1 - y0, 0), max(x1 - x0, 0)};
  return {region, y0 - all.y, x0 - all.x, region.h < all.h || region.w < all.w};
}

template <class L>
__device__ __forceinline__ void store_hidden(const UnitForwardCall& call, const Hidden& hidden,
                                             const Patch& patch, Sums<L>& acc, float* out,
                                             const Planes& planes) {
  const bool now = few_instructions(call.hidden);
  if (now) activate_few<L>(call.hidden, acc);
  const int rows = min(hidden.region.h - patch.y, Patches::kRows);
  const int columns = min(hidden.region.w - patch.x, Patches::kColumns);
  float* at = out + (patch.unit * L::kOut + patch.channel) * planes.plane +
              patch.image * planes.image + (hidden.y + patch.y) * planes.pitch + hidden.x + patch.x;
#pragma unroll
  for (int c = 0; c < L::kChannels; ++c) {
#pragma unroll
    for (int r = 0; r < Patches::kRows; ++r) {
#pragma unroll
      for (int x = 0; x < Patches::kColumns; ++x) {
        if (r < rows && x < columns) at[c * planes.plane + r * planes.pitch + x] = acc[c][r][x];
      }
    }
  }
  if (now) return;
  // What this thread itself has just written.
#pragma unroll 1
  for (int i = 0; i < L::kChannels * Patches::kRows * Patches::kColumns; ++i) {
    const int x = i % Patches::kColumns, r = i / Patches::kColumns % Patches::kRows;
    if (r >= rows || x >= columns) continue;
    float& v = at[i / Patches::kColumns / Patches::kRows * planes.plane + r * planes.pitch + x];
    v = activate(call.hidden, v);
  }
}

// Two columns of a row of an image, or the one that is there.
template <class T>
__device__ __forceinline__ void read_pair(const View& view, bool pairs, int64_t at, bool second,
                                          float (&to)[2]) {
  const T* from = static_cast<const T*>(view.data) + at;
  if (pairs) {
    read_values<T, 2>(from, to);
  } else {
    to[0] = to_float(from[0]);
    to[1] = second ? to_float(from[view.stride_w]) : 0.f;
  }
}

template <class T, class L>
__device__ __forceinline__ void store_output(const UnitForwardCall& call, const Tiling& tiling,
                                             const Job& job, const Region& out, int channel,
                                             const Patch& patch, Sums<L>& acc) {
  const View &y = call.y, &res = call.residual;
  const int line = job.tile.y + patch.y, column = job.tile.x + patch.x;
  const int rows = out.h - patch.y;
  const bool second = out.w - patch.x > 1;
  const int n = job.n0 + patch.image;
  channel += patch.unit * L::kOut + patch.channel;
  activate_few<L>(call.out, acc);
  if (res.data) {
    const int64_t at = res.offset(n, channel, line, column);
#pragma unroll
    for (int c = 0; c < L::kChannels; ++c) {
#pragma unroll
      for (int r = 0; r < Patches::kRows; ++r) {
        if (r >= rows) break;
        float more[2];
        read_pair<T>(res, tiling.residual_pairs, at + c * res.stride_c + r * res.stride_h, second,
                     more);
        acc[c][r][0] += more[0];
        acc[c][r][1] += more[1];
      }
    }
    activate_few<L>(call.after_residual, acc);
  }
  T* at = static_cast<T*>(const_cast<void*>(y.data)) + y.offset(n, channel, line, column);
#pragma unroll
  for (int c = 0; c < L::kChannels; ++c) {
#pragma unroll
    for (int r = 0; r < Patches::kRows; ++r) {
      if (r >= rows) break;
      T* to = at + c * y.stride_c + r * y.stride_h;
      if (tiling.y_pairs) {
        write_values<T, 2>(to, acc[c][r]);
      } else {
        to[0] = from_float<T>(acc[c][r][0]);
        if (second) to[y.stride_w] = from_float<T>(acc[c][r][1]);
      }
    }
  }
}

// For store_tile.
template <class L>
__device__ __forceinline__ void stage_output(const Patch& patch, const Sums<L>& acc, float* out,
                                             const Planes& planes) {
  float* at = out + (patch.unit * L::kOut + patch.channel) * planes.plane +
              patch.image * planes.image + patch.y * planes.pitch + patch.x;
#pragma unroll
  for (int c = 0; c < L::kChannels; ++c) {
#pragma unroll
    for (int r = 0; r < Patches::kRows; ++r) {
      *reinterpret_cast<float2*>(at + c * planes.plane + r * planes.pitch) =
          make_float2(acc[c][r][0], acc[c][r][1]);
    }
  }
}

template <class T>
__device__ __forceinline__ void run_fixed(const UnitForwardCall& call, const Tiling& tiling,
                                          const Job& job, float* shared, bool pack) {
  const Kind& kind = job.run.kind();
  float* first = shared + tiling.weights;
  float* second = first + tiling.first;
  float* weights = shared + job.units * fixed_floats(kind.widths[0], kind.widths[1]);
  if (pack) {
    pack_fixed<T>(call, job, 0, shared);
    pack_fixed<T>(call, job, 1, weights);
  }
  const Hidden hidden = hidden_of(call, kind, job.tile);
  if (hidden.clipped) {
    const int floats = job.units * kind.widths[1] * tiling.hidden.plane;
    for (int i = int(threadIdx.x) * 4; i < floats; i += Tiling::kThreads * 4) {
      *reinterpret_cast<float4*>(second + i) = make_float4(0, 0, 0, 0);
    }
  }
  load_tile<T>(call.x, tiling.x_vector, job.channel(0), job.units * kind.widths[0], job.n0,
               job.images, input_of(kind, 1, call.stride, hidden.region), first, tiling.in);
  __syncthreads();
  for_level<kFirstLevels>(kind.code / kSecondCount, [&](auto level) {
    using L = decltype(level);
    const auto finish = [&](const Patch& patch, Sums<L>& acc) {
      store_hidden<L>(call, hidden, patch, acc, second, tiling.hidden);
    };
    if (call.stride == 1) {
      run_level<L, 1>(tiling.first_level, job, hidden.region, first, tiling.in, shared, finish);
    } else {
      run_level<L, 2>(tiling.first_level, job, hidden.region, first, tiling.in, shared, finish);
    }
  });
  __syncthreads();
  const Region out{0, 0, min(job.tile.h, call.y.h - job.tile.y),
                   min(job.tile.w, call.y.w - job.tile.x)};
  const int channel = job.channel(2);
  for_level<kSecondLevels>(kind.code % kSecondCount, [&](auto level) {
    using L = decltype(level);
    run_level<L, 1>(tiling.second_level, job, out, second, tiling.hidden, weights,
                    [&](const Patch& patch, Sums<L>& acc) {
                      if (tiling.staged) {
                        stage_output<L>(patch, acc, first, tiling.out);
                      } else {
                        store_output<T, L>(call, tiling, job, out, channel, patch, acc);
                      }
                    });
  });
}

}  // namespace bunit::gpu
