// A block takes a tile of the output of one unit, up to four channels at a time, and reads the
// input once into shared memory, through the norm and activation before the level where there is
// one. Where not all input channels fit, or there are too few tiles to go round, a block takes four
// output channels alone, and input channels a few at a time: sums stay in registers, so that units
// may be of any width. The gradient of the input is the same with weights turned; at stride 2 a
// tap meets every other pixel of it. At larger strides, and where a kernel's reach leaves no room
// for a tile, pixels are read from global memory instead.
//
// Widths of 16 and more are work for tensor cores, 989 TFLOP/s of dense bfloat16 on an H200 against
// the 67 of plain multiply-adds used here; at 3x3 and width 16 these take 2 * 9 * 16 / 67e12 s a
// value against 2 * 2 / 4.3e12 s for its bytes, 4.6 times as long. So the general path is there for
// any width and `auto` leaves wide units to cuDNN.

#include "cuda/level_conv.h"

#include <algorithm>

#include "cuda/accumulate.cuh"
#include "cuda/level_sums.cuh"
#include "cuda/level_tile.cuh"

namespace bunit::gpu {
namespace {

struct Tiling {
  static constexpr int kThreads = 128, kRows = 4, kWidth = 32;
  static constexpr int64_t kSharedBytes = 40 * 1024, kWholeBytes = 64 * 1024;
  static constexpr int kBlocks = 5;  // for each processor, which runs as many of them at once

  // Floats of shared memory for sums over the block: of moments, of a norm's gradient.
  static constexpr int kSums = 2 * kChannels * kThreads / 32;

  int strips, w, images;  // of a tile: strips of kRows rows, a thread each column of each
  int tiles_y, tiles_x, image_groups;
  int weights;  // floats of shared memory
  int chunk;    // input channels at a time
  int tile;     // floats of shared memory for one input channel
  bool direct;  // pixels straight from global memory
  bool whole;   // all channels of a unit in one block

  __host__ __device__ int h() const { return strips * kRows; }
  int64_t tiles() const { return int64_t(tiles_y) * tiles_x * image_groups; }
};

struct Shape {
  int ins, outs;  // channels
  int pad;
};

__host__ __device__ inline Shape shape_of(const Kind& kind, const LevelConvCall& call) {
  const int span = call.dilation * (kind.kernel - 1);
  if (!call.transposed) return {kind.widths[0], kind.widths[1], kind.pad};
  return {kind.widths[1], kind.widths[0], call.stride == 1 ? span - kind.pad : kind.pad};
}

struct Place {
  int n0, images, y, x;  // of the tile
};

__device__ inline UnitWeight weight_of(const LevelConvCall& call, const LevelUnit& unit) {
  return {unit.weight, unit.kind.widths[0], unit.kind.kernel * unit.kind.kernel, call.transposed,
          call.transposed && call.stride == 1};
}

// At most so many rows (columns) of a gradient are what so many of the input's are made of, where
// the convolution had stride 2.
__host__ __device__ inline int spread_over(int size, int span) { return (size - 1 + span) / 2 + 2; }

// The input that a tile is made of.
__device__ inline Window window_of(const LevelConvCall& call, const Tiling& tiling,
                                   const Kind& kind, const Place& place) {
  const int span = call.dilation * (kind.kernel - 1), stride = call.transposed ? 1 : call.stride;
  const int pad = shape_of(kind, call).pad;
  if (call.transposed && call.stride == 2) {  // shifts round down, also below 0
    return {place.n0,
            place.images,
            (place.y + pad - span) >> 1,
            (place.x + pad - span) >> 1,
            spread_over(tiling.h(), span),
            spread_over(tiling.w, span)};
  }
  return {place.n0,
          place.images,
          place.y * stride - pad,
          place.x * stride - pad,
          (tiling.h() - 1) * stride + span + 1,
          (tiling.w - 1) * stride + span + 1};
}

// Where pixel `at` of the output finds tap `k` along one axis, or -1.
__device__ inline int source_of(const LevelConvCall& call, int pad, int at, int k, int size) {
  if (!call.transposed || call.stride == 1) {
    const int from = at * (call.transposed ? 1 : call.stride) - pad + k * call.dilation;
    return from >= 0 && from < size ? from : -1;
  }
  const int from = at + pad - k * call.dilation;
  return from >= 0 && from % call.stride == 0 && from / call.stride < size ? from / call.stride
                                                                           : -1;
}

template <class T, int C, int R>
__device__ void accumulate_direct(const LevelConvCall& call, int kernel, int pad, int n,
                                  int channel, int channels, int y, int x, const float* weights,
                                  float (&acc)[C][R]) {
  const View& view = call.x.view;
  for (int ci = 0; ci < channels; ++ci) {
    for (int ky = 0; ky < kernel; ++ky) {
      for (int kx = 0; kx < kernel; ++kx, weights += C) {
        const int column = source_of(call, pad, x, kx, view.w);
        if (column < 0) continue;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const int line = source_of(call, pad, y + r, ky, view.h);
          if (line < 0) continue;
          const float v = call.x.read<T>(n, channel + ci, line, column);
#pragma unroll
          for (int c = 0; c < C; ++c) acc[c][r] += weights[c] * v;
        }
      }
    }
  }
}

// The gradient of the input of a level of stride 2: a tap meets every other pixel, of a row as of a
// column. `y` and `x` are those of the first pixel, plus the padding, from twice the window's first
// on; all rows of a block have the same parity, neighbouring columns have not.
template <int C, int R>
__device__ void accumulate_every_other(const float* window, int pitch, int plane, int kernel,
                                       int dilation, int channels, int y, int x,
                                       const float* weights, float (&acc)[C][R]) {
  for (int ci = 0; ci < channels; ++ci, window += plane) {
    for (int ky = 0; ky < kernel; ++ky) {
      const int row = y - ky * dilation;
      for (int kx = 0; kx < kernel; ++kx, weights += C) {
        const int column = x - kx * dilation;
        if (column & 1) continue;
        const float* from = window + ((row + 1) >> 1) * pitch + (column >> 1);
        float w[C];
        load_weights(weights, w);
        if (row & 1) {
#pragma unroll
          for (int r = 1; r < R; r += 2) {
            const float v = from[r / 2 * pitch];
#pragma unroll
            for (int c = 0; c < C; ++c) acc[c][r] += w[c] * v;
          }
        } else {
#pragma unroll
          for (int r = 0; r < R; r += 2) {
            const float v = from[r / 2 * pitch];
#pragma unroll
            for (int c = 0; c < C; ++c) acc[c][r] += w[c] * v;
          }
        }
      }
    }
  }
}

// Output channels [c0, c0 + C) of a unit, whose input and weights are in shared memory already
// where the tiling says `whole`.
template <class T, int C>
__device__ void run_block(const LevelConvCall& call, const Tiling& tiling, const LevelUnit& unit,
                          int c0, int part, const Place& place, float* shared) {
  constexpr int R = Tiling::kRows;
  const Kind& kind = unit.kind;
  const Shape shape = shape_of(kind, call);
  const int area = kind.kernel * kind.kernel;
  const int stride = call.transposed ? 1 : call.stride;
  const int first_in = unit.first_in;
  const int first_out = unit.first_out + c0;
  const Window window = window_of(call, tiling, kind, place);
  float* sums = shared;
  float* weights = sums + Tiling::kSums;
  float* tile = weights + tiling.weights;
  if (tiling.whole) weights += c0 * shape.ins * area;

  const int x = int(threadIdx.x) % tiling.w, strip = int(threadIdx.x) / tiling.w % tiling.strips;
  const int image = int(threadIdx.x) / tiling.w / tiling.strips;
  const bool active = image < place.images;
  const Place at{place.n0 + image, 1, place.y + strip * R, place.x + x};  // of the thread
  float acc[C][R];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float b = call.bias ? to_float(static_cast<const T*>(call.bias)[first_out + c]) : 0.f;
#pragma unroll
    for (int r = 0; r < R; ++r) acc[c][r] = b;
  }
  for (int ci = 0; ci < shape.ins; ci += tiling.chunk) {
    const int channels = min(tiling.chunk, shape.ins - ci);
    if (!tiling.whole) {
      __syncthreads();
      load_weights_of<T, Tiling::kThreads>(call.weight, weight_of(call, unit), ci, channels, c0, C,
                                           weights);
      if (!tiling.direct) {
        load_window<T, Tiling::kThreads>(call.x, first_in + ci, channels, window, tile);
      }
      __syncthreads();
    }
    if (!active) continue;
    if (tiling.direct) {
      accumulate_direct<T>(call, kind.kernel, shape.pad, at.n0, first_in + ci, channels, at.y, at.x,
                           weights, acc);
    } else if (call.transposed && call.stride == 2) {
      accumulate_every_other(tile + image * window.h * window.w, window.w, window.plane(),
                             kind.kernel, call.dilation, channels, at.y + shape.pad - 2 * window.y,
                             at.x + shape.pad - 2 * window.x, weights, acc);
    } else {
      const Taps taps{kind.kernel, call.dilation, stride, window.w, window.plane()};
      accumulate(tile + (image * window.h + strip * R * stride) * window.w + x * stride, taps,
                 channels, weights, acc);
    }
  }
  bool valid[R];
#pragma unroll
  for (int r = 0; r < R; ++r) valid[r] = active && at.y + r < call.y.h && at.x < call.y.w;
  if (call.sums) {
    through_norm<Tiling::kThreads, T>(call.before, {at.n0, first_out, at.y, at.x}, valid, acc,
                                      call.sums + int64_t(part) * call.y.c + first_out, sums);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (!valid[r]) continue;
    const int64_t to = call.y.offset(at.n0, first_out, at.y + r, at.x);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      call.y.write<T>(to + c * call.y.stride_c, activate(call.out, acc[c][r]));
    }
  }
  if (call.moments) {
    write_moments<Tiling::kThreads>(acc, valid, call.moments + int64_t(part) * call.y.c + first_out,
                                    sums);
  }
}

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, Tiling::kBlocks)
    level_conv_kernel(const __grid_constant__ LevelConvCall call,
                      const __grid_constant__ Tiling tiling, const __grid_constant__ Runs runs) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  const int part = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, item);
  const Shape shape = shape_of(run.kind(), call);
  const int items = run.kind().items;
  const LevelUnit unit(run, (item - run.first()) / items, call.transposed);
  Place place{};
  place.x = part % tiling.tiles_x * tiling.w;
  place.y = part / tiling.tiles_x % tiling.tiles_y * tiling.h();
  place.n0 = part / tiling.tiles_x / tiling.tiles_y * tiling.images;
  place.images = min(tiling.images, call.y.n - place.n0);
  int begin = (item - run.first()) % items * kChannels, end = min(begin + kChannels, shape.outs);
  if (tiling.whole) {
    begin = 0;
    end = shape.outs;
    float* weights = shared + Tiling::kSums;
    load_all_weights<T, Tiling::kThreads>(call.weight, weight_of(call, unit), shape.ins, shape.outs,
                                          weights);
    load_window<T, Tiling::kThreads>(call.x, unit.first_in, shape.ins,
                                     window_of(call, tiling, run.kind(), place),
                                     weights + tiling.weights);
    __syncthreads();
  }
  for (int c0 = begin; c0 < end; c0 += kChannels) {
    for_count(min(kChannels, end - c0), [&](auto count) {
      run_block<T, decltype(count)::value>(call, tiling, unit, c0, part, place, shared);
    });
  }
}

Tiling tiling_of(const Stack& stack, int level, const LevelConvCall& call) {
  int kernel = 1, ins = 1, outs = 1;
  int64_t most = 1;  // elements of a unit's weight, a block of channels filled up
  for (const Unit& unit : stack.units) {
    const int from = unit.widths[level + (call.transposed ? 1 : 0)];
    const int to = unit.widths[level + (call.transposed ? 0 : 1)];
    kernel = std::max(kernel, unit.kernel);
    ins = std::max(ins, from);
    outs = std::max(outs, to);
    most = std::max(most, int64_t(from) * to * unit.kernel * unit.kernel);
  }
  const int64_t area = int64_t(kernel) * kernel, span = int64_t(call.dilation) * (kernel - 1);
  const int64_t stride = call.transposed ? 1 : call.stride;
  Tiling t{};
  t.w = std::min(call.y.w, Tiling::kWidth);
  t.strips = std::min(ceil_div(call.y.h, Tiling::kRows), Tiling::kThreads / t.w);
  t.images = std::clamp(Tiling::kThreads / (t.w * t.strips), 1, std::max(1, call.y.n));
  t.tiles_y = ceil_div(call.y.h, t.h());
  t.tiles_x = ceil_div(call.y.w, t.w);
  t.image_groups = ceil_div(call.y.n, t.images);
  const bool halved = call.transposed && call.stride == 2;
  const auto window = [&](int size) -> int64_t {
    return halved ? spread_over(size, int(span)) : (size - 1) * stride + span + 1;
  };
  const int64_t pixels = t.images * window(t.h()) * window(t.w);
  t.direct = (call.transposed && call.stride > 2) ||
             (pixels + area * kChannels) * 4 > Tiling::kSharedBytes;
  t.tile = t.direct ? 0 : int(pixels);
  const int64_t blocks = int64_t(t.tiles()) * int64_t(stack.units.size());
  const bool enough = outs <= kChannels || blocks >= int64_t(processors()) * Tiling::kBlocks;
  t.whole =
      !t.direct && enough && (most + ins * pixels + Tiling::kSums + 3) * 4 <= Tiling::kWholeBytes;
  if (t.whole) {
    t.chunk = ins;
    t.weights = int((most + 3) / 4 * 4);
    return t;
  }
  const int64_t each = t.tile + area * kChannels;
  t.chunk = int(std::clamp<int64_t>((Tiling::kSharedBytes / 4 - Tiling::kSums) / each, 1, ins));
  t.weights = int((t.chunk * area * kChannels + 3) / 4 * 4);
  return t;
}

}  // namespace

int64_t level_conv_parts(const Layer& layer, int level, const LevelConvCall& call) {
  return tiling_of(layer.stack, level, call).tiles();
}

void level_conv(const Layer& layer, int level, const LevelConvCall& call, const Context& on) {
  const Tiling t = tiling_of(layer.stack, level, call);
  const int64_t bytes = (Tiling::kSums + t.weights + int64_t(t.chunk) * t.tile) * 4;
  STD_TORCH_CHECK(t.whole || bytes <= 48 * 1024,
                  "kernels of so many pixels are too large for backend cuda");
  const int outs = t.whole ? Layer::kAll : kChannels;
  const auto list = call.transposed ? layer.level(level, outs, Layer::kAll)
                                    : layer.level(level, Layer::kAll, outs);
  for (const Runs& runs : list->launches) {
    STD_TORCH_CHECK(t.tiles() * runs.items < (int64_t(1) << 31), "more than 2^31 tiles");
    for_dtype(on.dtype, [&](auto type) {
      using T = decltype(type);
      if (bytes > 48 * 1024) {
        cudaFuncSetAttribute(level_conv_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(bytes));
      }
      BUNIT_LAUNCH((level_conv_kernel<T>), dim3(unsigned(t.tiles() * runs.items)),
                   dim3(Tiling::kThreads), size_t(bytes), on.stream, call, t, runs);
    });
    check_launch("level_conv");
  }
}

}  // namespace bunit::gpu
