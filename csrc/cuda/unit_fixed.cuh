// Units of two levels of 3x3 kernels whose widths are known at compile time.
//
// A thread makes a patch of 4 rows and 2 columns of up to 4 output channels. Per input channel it
// reads 6 rows of 4 pixels, two pairs each, and the 9 weights of each output channel, four in a
// load that serves the whole warp. Of a 2-4-2 unit that is, per output pixel and in instructions of
// a warp (an SM issues 4 a cycle, 4 of them multiply-adds or one an access of 128 bytes to shared
// memory):
//                                    level 1        level 2       both
//   multiply-adds                    2 * 36         4 * 18        144
//   loads of pixels                  2 * 1.5        4 * 1.5         9    18 accesses
//   loads of weights                 2 * 9 / 8      4 * 5 / 8       4.8   4.8
//   stores to shared memory          2 * 1          4 * 1           6    10, see below
//   values of global memory          2              2               4
// so that its multiply-adds take 36 cycles for 32 pixels, all issue slots 41 and the addresses and
// tests around them, shared memory 33; global memory 4 * 32 values, in float32 27 cycles of an SM's
// share of 4.3 TB/s at 1.75 GHz, in bfloat16 13. Issue of multiply-adds bounds it. A third of the
// accesses to shared memory would go with four columns a thread, but also half of the threads of a
// 32x32 tile.
//
// Half of what a thread stores of the hidden level meets another thread's bank, since the pixel at
// the left border takes the even place of a pair; and loads of four columns store theirs one by
// one, at four words' distance. Both leave shared memory below the multiply-adds.
#pragma once

#include "cuda/fixed_widths.h"
#include "cuda/unit_tiles.cuh"

namespace bunit::gpu {

template <int In, int Out>
struct Level {
  static constexpr int kIn = In, kOut = Out, kChannels = fixed_channels(Out);
  static constexpr int kBlocks = Out / kChannels, kRow = fixed_row(Out);
  static constexpr int kFloats = fixed_floats(In, Out);
  // Input channels in straight code: more than about this many multiply-adds would leave the
  // instruction cache of a quarter of an SM. All of them for the paper's pool and for 2-4-2.
  static constexpr int kUnroll = 640 / (9 * 8 * kChannels) < In ? 640 / (9 * 8 * kChannels) : In;
  static_assert(Out % kChannels == 0);
};

// Calls body(Level) for the entry of a list of widths.
template <const auto& List, int I = 0, class F>
__device__ __forceinline__ void for_level(int entry, F body) {
  if constexpr (I < int(sizeof List / sizeof *List)) {
    if (entry == I) {
      body(Level<List[I].in, List[I].out>{});
    } else {
      for_level<List, I + 1>(entry, body);
    }
  }
}

// Weights and biases of one level of a block's units.
template <class T>
__device__ void pack_fixed(const UnitForwardCall& call, const Job& job, int level, float* to) {
  const Kind& kind = job.run.kind();
  const int ins = kind.widths[level], outs = kind.widths[level + 1];
  const int at_once = fixed_channels(outs), row = fixed_row(outs), stride = fixed_floats(ins, outs);
  const T* from = static_cast<const T*>(call.weights[level]) + job.run.weight(level) +
                  job.unit * kind.block(level);
  const T* bias = static_cast<const T*>(call.biases[level]);
  const Divider in(ins), out(outs);
  for (int i = int(threadIdx.x); i < job.units * outs * ins * 9; i += Tiling::kThreads) {
    const int tap = i % 9;
    int unit = i / 9;
    const int ci = in.split(unit), c = out.split(unit), block = c / at_once;
    to[unit * stride + (block * ins + ci) * row + tap * at_once + c - block * at_once] =
        to_float(from[i]);
  }
  const int biases = outs / at_once * ins * row, channel = job.channel(level + 1);
  for (int i = int(threadIdx.x); i < job.units * outs; i += Tiling::kThreads) {
    int unit = i;
    const int c = out.split(unit);
    to[unit * stride + biases + c] = bias ? to_float(bias[channel + i]) : 0.f;
  }
}

// Sums of one patch and one block of channels: [channels][rows][columns].
template <class L>
using Sums = float[L::kChannels][Patches::kRows][Patches::kColumns];

// Adds an input channel's part. `in` is where the patch's first output pixel has its first tap.
template <class L, int Stride>
__device__ __forceinline__ void add_channel(const float* in, const Planes& planes,
                                            const float* weights, Sums<L>& acc) {
  constexpr int C = L::kChannels, kColumns = Stride + 3;
  float w[L::kRow];
#pragma unroll
  for (int i = 0; i < L::kRow; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(weights + i);
    w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
  }
#pragma unroll
  for (int i = 0; i < (Patches::kRows - 1) * Stride + 3; ++i) {
    const float* row = in + i * planes.pitch;
    float v[kColumns];
    const float2 pair = *reinterpret_cast<const float2*>(row);
    if constexpr (Stride == 1) {
      const float2 next = *reinterpret_cast<const float2*>(row + 2);
      v[0] = pair.x, v[1] = pair.y, v[2] = next.x, v[3] = next.y;
    } else {
      const float2 odd = *reinterpret_cast<const float2*>(row + planes.odd);
      v[0] = pair.x, v[1] = odd.x, v[2] = pair.y, v[3] = odd.y, v[4] = row[2];
    }
#pragma unroll
    for (int ky = 0; ky < 3; ++ky) {
      if (i < ky || (i - ky) % Stride != 0 || (i - ky) / Stride >= Patches::kRows) continue;
#pragma unroll
      for (int kx = 0; kx < 3; ++kx) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          float (&to)[Patches::kColumns] = acc[c][(i - ky) / Stride];
#pragma unroll
          for (int x = 0; x < Patches::kColumns; ++x) {
            to[x] += w[(ky * 3 + kx) * C + c] * v[kx + x * Stride];
          }
        }
      }
    }
  }
}

// Where a thread's patch lies: its first output pixel, among a tile's, and first channel.
struct Patch {
  int unit, channel, image, y, x;
};

// One level of a block's units, as far as the tile needs it; `finish(patch, sums)` takes each
// patch.
template <class L, int Stride, class F>
__device__ __forceinline__ void run_level(const Patches& patches, const Job& job, const Region& out,
                                          const float* in, const Planes& planes,
                                          const float* weights, F finish) {
  const int all = job.units * L::kBlocks * patches.count();
#pragma unroll 1
  for (int i = int(threadIdx.x); i < all; i += Tiling::kThreads) {
    int rest = i;
    Patch patch;
    patch.x = patches.across.split(rest) * Patches::kColumns;
    patch.y = patches.down.split(rest) * Patches::kRows;
    patch.image = patches.images.split(rest);
    if (patch.image >= job.images || patch.y >= out.h || patch.x >= out.w) continue;
    const int block = rest % L::kBlocks;
    patch.unit = rest / L::kBlocks;
    patch.channel = block * L::kChannels;
    const float* own = weights + patch.unit * L::kFloats;
    Sums<L> acc;
#pragma unroll
    for (int c = 0; c < L::kChannels; ++c) {
      const float bias = own[L::kBlocks * L::kIn * L::kRow + patch.channel + c];
#pragma unroll
      for (int r = 0; r < Patches::kRows; ++r) acc[c][r][0] = acc[c][r][1] = bias;
    }
    // Of a split row, the even columns: the pair of a patch begins at the same place.
    const float* at = in + patch.unit * L::kIn * planes.plane + patch.image * planes.image +
                      patch.y * Stride * planes.pitch + patch.x;
    own += block * L::kIn * L::kRow;
#pragma unroll L::kUnroll
    for (int ci = 0; ci < L::kIn; ++ci) {
      add_channel<L, Stride>(at, planes, own, acc);
      at += planes.plane;
      own += L::kRow;
    }
    finish(patch, acc);
  }
}

// Activations of a few instructions; the others are too much code to repeat for each value.
__host__ __device__ inline bool few_instructions(Activation name) {
  return name == Activation::identity || name == Activation::relu;
}
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
__device__ void run_fixed(const UnitForwardCall& call, const Tiling& tiling, const Job& job,
                          float* shared) {
  const Kind& kind = job.run.kind();
  float* first = shared + tiling.weights;
  float* second = first + tiling.first;
  float* weights = shared + job.units * fixed_floats(kind.widths[0], kind.widths[1]);
  pack_fixed<T>(call, job, 0, shared);
  pack_fixed<T>(call, job, 1, weights);
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
