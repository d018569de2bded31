// A block takes rows of a few neighbouring units, a tile at a time, in planes of shared memory: a
// channel each, so that the threads of a warp, a row each, hit different banks.
//
// Neighbouring units, because a 4-channel unit's own 16 bytes of a row are half of what memory
// gives at least: a warp reads 32 channels of all units together. A warp then takes one unit's rows
// through all levels and back: no thread needs another's row, so nothing is waited for between
// levels. At last each thread takes 4 x 4 weights of a level and sums over rows; sums stay in
// shared memory from tile to tile, and those of all blocks are added up by a second kernel in a
// fixed order.

#pragma once

#include "cuda/unit_linear_backward.h"

namespace bunit::gpu {
namespace {

struct Tiling {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kWide = 32;  // channels that a warp reads together
  // Several blocks an SM, so that one computes while another reads; fewer for wide units.
  static constexpr int64_t kSharedBytes = 48 * 1024, kMostSharedBytes = 96 * 1024;
  static constexpr int kWidest = 1024;  // no wider unit fits, and sizes are ints
  // Enough blocks to fill a GPU of 132 processors several times over, but no more parts than what
  // adds them up gets through quickly.
  static constexpr int kBlocks = 132 * 8, kFewBlocks = 132 * 2, kParts = 128;

  int rows, parts;                                       // of a tile; blocks that share the rows
  int weights, planes;                                   // floats of shared memory, beside sums
  int64_t sums_size;                                     // of a block's part of all sums
  int64_t weight_sums[kMaxDepth], bias_sums[kMaxDepth];  // where those of a level begin
};

__host__ __device__ constexpr int fours(int n) { return (n + 3) / 4; }

// Where a level's things lie among those of one unit.
struct Places {
  int weights;  // rows of its weight, padded to whole float4
  int hidden;   // planes of its output, and as many of its gradient
  int blocks;   // of 4 x 4 weights
};

struct UnitShape {
  const Kind& kind;
  int depth;

  // What comes before `level`; of all levels where that is `depth`.
  __host__ __device__ Places before(int level) const {
    // The planes begin with the unit's input, the gradient of that, and of the output.
    Places at{0, 2 * kind.widths[0] + kind.widths[depth], 0};
    for (int l = 0; l < level; ++l) {
      at.weights += kind.widths[l + 1] * fours(kind.widths[l]) * 4;
      at.blocks += fours(kind.widths[l + 1]) * fours(kind.widths[l]);
      if (l + 1 < depth) at.hidden += 2 * kind.widths[l + 1];
    }
    return at;
  }
  __host__ __device__ int x() const { return 0; }
  __host__ __device__ int grad_x() const { return kind.widths[0]; }
  // The gradient of level `l`'s output before its activation.
  __host__ __device__ int grad(int l) const {
    return l == depth - 1 ? 2 * kind.widths[0] : before(l).hidden + kind.widths[l + 1];
  }
  __host__ __device__ int input(int l) const { return l == 0 ? x() : before(l - 1).hidden; }
};

constexpr int kSums = 20;  // of a thread: 4 x 4 weights and 4 biases

// acc[c] += sum over taps of weight(c, t) * in(t), for up to 4 output channels of a level; their
// weights begin at `weights`, `step` apart.
__device__ inline void map_level(const float* in, int plane, int taps, const float* weights,
                                 int step, int channels, float (&acc)[4]) {
  for (int t = 0; t < taps; t += 4) {
    float4 w[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      w[c] = *reinterpret_cast<const float4*>(weights + min(c, channels - 1) * step + t);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (t + i >= taps) break;
      const float v = in[(t + i) * plane];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        acc[c] += (i == 0 ? w[c].x : i == 1 ? w[c].y : i == 2 ? w[c].z : w[c].w) * v;
      }
    }
  }
}

// The same for the transposed weight: acc[c] += sum over taps of weight(t, c) * in(t).
__device__ inline void map_back(const float* in, int plane, int taps, const float* weights,
                                int step, float (&acc)[4]) {
  for (int t = 0; t < taps; ++t, weights += step) {
    const float4 w = *reinterpret_cast<const float4*>(weights);
    const float v = in[t * plane];
    acc[0] += w.x * v;
    acc[1] += w.y * v;
    acc[2] += w.z * v;
    acc[3] += w.w * v;
  }
}

template <class T>
struct UnitLinearBackward {
  const UnitLinearBackwardCall& call;
  const Tiling& tiling;
  const Run& run;
  const Kind& kind;        // the run's
  const int first, units;  // of the run
  const UnitShape shape;
  const Places all;
  const int plane_size;  // odd: neighbouring channels begin in neighbouring banks
  float *weights, *planes, *sums;

  __device__ Activation activation(int level) const {
    return level == call.depth - 1 ? call.out : call.hidden;
  }
  __device__ float* plane(int unit, int index) const {
    return planes + (unit * all.hidden + index) * plane_size;
  }

  __device__ void load_weights() const {
    for (int l = 0; l < call.depth; ++l) {
      const int c_in = kind.widths[l], c_out = kind.widths[l + 1], step = fours(c_in) * 4;
      const T* from =
          static_cast<const T*>(call.weights[l]) + run.weight(l) + first * kind.block(l);
      const int at = shape.before(l).weights;
      for (int i = int(threadIdx.x); i < units * c_out * step; i += Tiling::kThreads) {
        const int column = i % step, row = i / step;
        weights[row / c_out * all.weights + at + row % c_out * step + column] =
            column < c_in ? to_float(from[row * c_in + column]) : 0.f;
      }
    }
  }

  // Rows from `row` on, `count` of them and zeros beyond, to planes from `to` on of each unit.
  __device__ void load_rows(const Rows& from, int channel, int width, int to, int64_t row,
                            int count) const {
    const int channels = units * width;
    const T* data = static_cast<const T*>(from.data) + row * from.channels + channel;
    for (int i = int(threadIdx.x); i < channels * tiling.rows; i += Tiling::kThreads) {
      const int c = i % channels, r = i / channels;
      plane(c / width, to + c % width)[r] =
          r < count ? to_float(data[int64_t(r) * from.channels + c]) : 0.f;
    }
  }
  __device__ void store_rows(const Rows& target, int channel, int width, int from, int64_t row,
                             int count) const {
    const int channels = units * width;
    T* data = static_cast<T*>(const_cast<void*>(target.data)) + row * target.channels + channel;
    for (int i = int(threadIdx.x); i < channels * count; i += Tiling::kThreads) {
      const int c = i % channels, r = i / channels;
      data[int64_t(r) * target.channels + c] = from_float<T>(plane(c / width, from + c % width)[r]);
    }
  }

  // One row of one unit through all levels and back.
  __device__ void run_row(int unit, int row) const {
    const float* const unit_weights = weights + unit * all.weights;
    for (int l = 0; l < call.depth; ++l) {
      if (l == call.depth - 1 && call.out == Activation::identity) break;
      forward_level(unit, l, unit_weights + shape.before(l).weights, row);
    }
    for (int l = call.depth - 1; l >= 0; --l) {
      back_level(unit, l, unit_weights + shape.before(l).weights, row);
    }
  }

  // Of the last level the derivative alone is wanted. A hidden level leaves its pre-activation
  // where its gradient is to be.
  __device__ void forward_level(int unit, int l, const float* level_weights, int row) const {
    const bool last = l == call.depth - 1;
    const int c_in = kind.widths[l], c_out = kind.widths[l + 1], step = fours(c_in) * 4;
    const float* in = plane(unit, shape.input(l)) + row;
    float* grad = plane(unit, shape.grad(l)) + row;
    float* out = last ? nullptr : plane(unit, shape.input(l + 1)) + row;
    const T* bias = static_cast<const T*>(call.biases[l]);
    if (bias) bias += run.channel(l + 1) + (first + unit) * c_out;
    for (int c0 = 0; c0 < c_out; c0 += 4) {
      const int channels = min(4, c_out - c0);
      float acc[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[c] = bias && c < channels ? to_float(bias[c0 + c]) : 0.f;
      map_level(in, plane_size, c_in, level_weights + c0 * step, step, channels, acc);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (c >= channels) break;
        float& g = grad[(c0 + c) * plane_size];
        if (last) {
          g = activation_grad(call.out, acc[c], g);
        } else {
          out[(c0 + c) * plane_size] = activate(call.hidden, acc[c]);
          g = acc[c];
        }
      }
    }
  }

  // The gradient before level `l` from that of its pre-activation.
  __device__ void back_level(int unit, int l, const float* level_weights, int row) const {
    const int c_in = kind.widths[l], c_out = kind.widths[l + 1], step = fours(c_in) * 4;
    const float* grad = plane(unit, shape.grad(l)) + row;
    float* to = plane(unit, l == 0 ? shape.grad_x() : shape.grad(l - 1)) + row;
    for (int c0 = 0; c0 < c_in; c0 += 4) {
      float acc[4] = {};
      map_back(grad, plane_size, c_out, level_weights + c0, step, acc);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (c0 + c >= c_in) break;
        float& g = to[(c0 + c) * plane_size];
        g = l == 0 ? acc[c] : activation_grad(call.hidden, g, acc[c]);
      }
    }
  }

  // How many threads share a block of weights, each with some of the rows.
  __device__ int slices() const {
    int slices = 1;
    while (2 * slices * units * all.blocks <= Tiling::kThreads) slices *= 2;
    return slices;
  }

  // The level of a unit's block of weights, which becomes its index within.
  __device__ int level_of(int& block) const {
    int l = 0;
    for (; l < call.depth - 1; ++l) {
      const int own = fours(kind.widths[l + 1]) * fours(kind.widths[l]);
      if (block < own) break;
      block -= own;
    }
    return l;
  }

  // Adds the tile's `count` rows to the sums; each has one thread, always the same.
  __device__ void add_rows(int count, bool fresh) const {
    const int parts = slices(), items = units * all.blocks * parts;
    for (int i = int(threadIdx.x); i < items; i += Tiling::kThreads) {
      const int slice = i % parts, unit = i / parts / all.blocks;
      int block = i / parts % all.blocks;
      const int l = level_of(block);
      const int c_in = kind.widths[l], c_out = kind.widths[l + 1];
      const int i0 = block % fours(c_in) * 4, o0 = block / fours(c_in) * 4;
      const float *g[4], *x[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {  // beyond the last channel: the last, and nobody reads the sum
        g[c] = plane(unit, shape.grad(l) + min(o0 + c, c_out - 1));
        x[c] = plane(unit, shape.input(l) + min(i0 + c, c_in - 1));
      }
      float acc[kSums] = {};
      const int end = count * (slice + 1) / parts;
      for (int r = count * slice / parts; r < end; ++r) {
        float grads[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          grads[c] = g[c][r];
          acc[16 + c] += grads[c];
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float v = x[c][r];
#pragma unroll
          for (int o = 0; o < 4; ++o) acc[o * 4 + c] += grads[o] * v;
        }
      }
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        float& sum = sums[s * items + i];
        sum = fresh ? acc[s] : sum + acc[s];
      }
    }
  }

  // Number `s` of a block of weights, over all rows of this thread block.
  __device__ float sum_of(int unit, int block, int s) const {
    const int parts = slices(), items = units * all.blocks * parts;
    const float* from = sums + s * items + (unit * all.blocks + block) * parts;
    float total = 0;
    for (int slice = 0; slice < parts; ++slice) total += from[slice];
    return total;
  }

  __device__ void store_sums(float* to) const {
    for (int l = 0; l < call.depth; ++l) {
      const int c_in = kind.widths[l], c_out = kind.widths[l + 1], begin = shape.before(l).blocks;
      float* level = to + tiling.weight_sums[l] + run.weight(l) + first * kind.block(l);
      for (int i = int(threadIdx.x); i < units * c_out * c_in; i += Tiling::kThreads) {
        const int ci = i % c_in, co = i / c_in % c_out, unit = i / c_in / c_out;
        const int block = begin + co / 4 * fours(c_in) + ci / 4;
        level[i] = sum_of(unit, block, co % 4 * 4 + ci % 4);
      }
      if (!call.biases[l]) continue;
      level = to + tiling.bias_sums[l] + run.channel(l + 1) + first * c_out;
      for (int i = int(threadIdx.x); i < units * c_out; i += Tiling::kThreads) {
        const int co = i % c_out;
        level[i] = sum_of(i / c_out, begin + co / 4 * fours(c_in), 16 + co % 4);
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, 4)
    unit_linear_backward_kernel(const __grid_constant__ UnitLinearBackwardCall call,
                                const __grid_constant__ Tiling tiling,
                                const __grid_constant__ Runs runs, float* parts) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  const int part = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, item);
  const Kind& kind = run.kind();
  const int first = (item - run.first()) * kind.group;
  const int units = min(int(kind.group), run.count() - first);
  const UnitShape shape{kind, call.depth};
  float* const planes = shared + tiling.weights;
  const UnitLinearBackward<T> work{call,
                                   tiling,
                                   run,
                                   kind,
                                   first,
                                   units,
                                   shape,
                                   shape.before(call.depth),
                                   tiling.rows + 1,
                                   shared,
                                   planes,
                                   planes + tiling.planes};
  const int c_in = kind.widths[0], c_out = kind.widths[call.depth];
  const int x_channel = run.channel(0) + first * c_in;
  const int y_channel = run.channel(call.depth) + first * c_out;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, strips = tiling.rows / 32;
  work.load_weights();
  bool fresh = true;
  for (int64_t row = int64_t(part) * tiling.rows; row < call.rows;
       row += int64_t(tiling.parts) * tiling.rows) {
    const int count = int(min(int64_t(tiling.rows), call.rows - row));
    work.load_rows(call.x, x_channel, c_in, shape.x(), row, count);
    work.load_rows(call.grad, y_channel, c_out, shape.grad(call.depth - 1), row, count);
    __syncthreads();
    for (int i = warp; i < units * strips; i += Tiling::kWarps) {
      work.run_row(i / strips, i % strips * 32 + lane);
    }
    __syncthreads();
    work.store_rows(call.grad_x, x_channel, c_in, shape.grad_x(), row, count);
    work.add_rows(count, fresh);
    fresh = false;
    __syncthreads();
  }
  work.store_sums(parts + part * tiling.sums_size);
}

}  // namespace
}  // namespace bunit::gpu
