// One level of units of two levels of 3x3 kernels whose widths are known at compile time.
//
// A thread makes a patch of 4 rows and 2 columns of up to 4 output channels. Per input channel it
// reads 6 rows of 4 pixels, two pairs each, and the 9 weights of each output channel, four in a
// load that serves the whole warp. Counted for a 2-4-2 unit in float32 on a tile of 32x32, in
// instructions of a warp, that is for 32 pixels (an SM issues 4 a cycle, all 4 of them may be
// multiply-adds, and serves one access of 128 bytes of shared memory):
//                                  level 1      level 2     both   accesses
//   multiply-adds                  2 * 36       4 * 18       144
//   loads of pixels                2 * 1.5      4 * 1.5        9         18
//   loads of weights               2 * 9 / 8    4 * 5 / 8      5          5
//   stores, input and hidden       2            4              6         12
//   zeros around the hidden tile                               1          5
//   values of global memory        2            2              4
// Multiply-adds are 36 cycles, shared memory 40, the instructions above 41. With addresses, tests
// and activations the machine code for sm_90 took 403 instructions, at least 101 cycles, before a
// block went over several tiles: issue bounds it. Global memory, 4 * 32 values, is 27 cycles in
// float32 (an H200's 132 SMs at 1.75 GHz share 4.3 TB/s) and 13 in bfloat16.
//
// Stores of the hidden level meet in pairs at a bank, since the pixel at the left border takes the
// even place of a pair, and so do loads of four columns. Four columns a thread would take as many
// accesses (pairs 16 bytes apart meet at a bank) and leave half of the threads of such a tile.
// Tiles inside larger images compute the hidden pixels around them anew: a 28x28 quarter of 56x56
// makes 29x29, in patches 32x30.
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

}  // namespace bunit::gpu
