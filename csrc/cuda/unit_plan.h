// How a launch of unit_forward is cut into blocks, and where things lie in a block's shared memory.
#pragma once

#include "conv_size.h"
#include "cuda/divider.h"
#include "cuda/layer.h"
#include "cuda/unit_forward.h"

namespace bunit::gpu {

struct Region {
  int y, x, h, w;
};

// Images in shared memory: floats from one row, image, channel to the next. Rows whose columns are
// read two apart hold the even columns first and the odd ones from `odd` on, so that neighbouring
// threads read neighbouring words; 0: columns lie as they are.
struct Planes {
  int pitch, image, plane, odd;

  __device__ int column(int x) const { return odd ? (x & 1) * odd + (x >> 1) : x; }
};

// Threads that each make a patch of output of up to four channels: those of one unit and one block
// of channels.
struct Patches {
  static constexpr int kRows = 4, kColumns = 2;
  Divider across, down, images;

  Patches() = default;
  Patches(int h, int w, int images)
      : across((w + kColumns - 1) / kColumns), down((h + kRows - 1) / kRows), images(images) {}
  __host__ __device__ int count() const { return int(across.by * down.by * images.by); }
};

struct Tiling {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 4;  // on a processor at least: one computes while another reads

  int h, w, images;  // of a tile
  int tiles_y, tiles_x, image_groups;
  int weights, first, second;  // floats of shared memory: weights, two buffers in turn
  Planes out;                  // of the last level, where it goes through shared memory
  bool staged;                 // it does
  int x_vector;                // elements a load
  bool y_pairs, residual_pairs;

  // Of the kinds with compile-time widths (unit_fixed.cuh).
  Planes in, hidden;
  Patches first_level, second_level;
};

// Where the output of `level` that a tile needs lies in the level's image, perhaps partly outside.
__host__ __device__ inline Region needed(const Kind& kind, int depth, int dilation, int level,
                                         const Region& tile) {
  const int after = depth - 1 - level, span = dilation * (kind.kernel - 1);
  return {tile.y - after * kind.pad, tile.x - after * kind.pad, tile.h + after * span,
          tile.w + after * span};
}

// The input that a level's output is made of.
__host__ __device__ inline Region input_of(const Kind& kind, int dilation, int stride,
                                           const Region& out) {
  const int span = dilation * (kind.kernel - 1);
  return {out.y * stride - kind.pad, out.x * stride - kind.pad, (out.h - 1) * stride + span + 1,
          (out.w - 1) * stride + span + 1};
}

__host__ __device__ inline int level_size(int size, const Kind& kind, int dilation, int stride) {
  return conv_size<int>(size, kind.kernel, kind.pad, stride, dilation);
}

__host__ __device__ inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

struct UnitPlan {
  WorkList list;
  Tiling tiling;
  bool fits;  // shared memory
};

// The plan of a layer for inputs of a size and memory format, made once; null data in the call's
// views does not matter.
std::shared_ptr<const UnitPlan> unit_plan(const Layer& layer, const UnitForwardCall& call,
                                          int element_bytes, bool staged);

}  // namespace bunit::gpu
