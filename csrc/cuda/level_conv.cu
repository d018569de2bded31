// A block takes a tile of the output of up to four channels of one unit. Input channels come a few
// at a time through shared memory, read through the norm and activation before the level where
// there is one; sums stay in registers, so that units may be of any width. The gradient of the
// input is the same with weights turned; at strides of 2 and more, and where a kernel's reach
// leaves no room for a tile, pixels are read from global memory instead.
//
// Widths of 16 and more are work for tensor cores, 989 TFLOP/s of dense bfloat16 on an H200 against
// the 67 of plain multiply-adds used here; at 3x3 and width 16 these take 2 * 9 * 16 / 67e12 s a
// value against 2 * 2 / 4.3e12 s for its bytes, 4.6 times as long. So the general path is there for
// any width and `auto` leaves wide units to cuDNN.

#include "cuda/level_conv.h"

#include <algorithm>

#include "cuda/accumulate.cuh"
#include "cuda/block_sum.cuh"

namespace bunit::gpu {
namespace {

struct Tiling {
  static constexpr int kThreads = 128, kRows = 4, kWidth = 32;
  static constexpr int64_t kSharedBytes = 40 * 1024;

  int strips, w, images;  // of a tile: strips of kRows rows, a thread each column of each
  int tiles_y, tiles_x, image_groups;
  int chunk;    // input channels at a time
  int tile;     // floats of shared memory for one input channel
  bool direct;  // pixels straight from global memory

  __host__ __device__ int h() const { return strips * kRows; }
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

// Of a unit whose weight begins at `from`.
template <class T, int C>
__device__ void load_weights_of(const LevelConvCall& call, const Kind& kind, const T* from, int c0,
                                int ci0, int channels, float* to) {
  const int area = kind.kernel * kind.kernel, ins = kind.widths[0];
  for (int i = int(threadIdx.x); i < channels * area * C; i += Tiling::kThreads) {
    const int c = c0 + i % C, t = i / C % area, ci = ci0 + i / C / area;
    // [c_out][c_in][taps] of the level; turned where the convolution runs backwards at stride 1.
    const int at = call.transposed ? (ci * ins + c) * area + (call.stride == 1 ? area - 1 - t : t)
                                   : (c * ins + ci) * area + t;
    to[i] = to_float(from[at]);
  }
}

template <class T>
__device__ void load_tile(const LevelConvCall& call, const Place& place, int channel, int channels,
                          int top, int left, int h, int w, float* to) {
  const View& view = call.x.view;
  const int lane = int(threadIdx.x) % 32;
  for (int r = int(threadIdx.x) / 32; r < channels * place.images * h; r += Tiling::kThreads / 32) {
    const int y = top + r % h, image = r / h % place.images, c = channel + r / h / place.images;
    for (int i = lane; i < w; i += 32) {
      const int x = left + i;
      const bool inside = y >= 0 && y < view.h && x >= 0 && x < view.w;
      to[r * w + i] = inside ? call.x.read<T>(place.n0 + image, c, y, x) : 0.f;
    }
  }
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

// Moments of the block's valid values of each channel, without cancellation: mean first, then the
// distances from it.
template <int C, int R>
__device__ void write_moments(const float (&acc)[C][R], const bool (&valid)[R], Moments* to,
                              float* shared) {
  float sums[C + 1] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) sums[c] += valid[r] ? acc[c][r] : 0.f;
    sums[C] += valid[r] ? 1.f : 0.f;
  }
  block_sum<Tiling::kThreads>(sums, shared);
  float squares[C] = {};
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float mean = sums[c] / sums[C];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float d = acc[c][r] - mean;
      squares[c] += valid[r] ? d * d : 0.f;
    }
  }
  block_sum<Tiling::kThreads>(squares, shared);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int c = 0; c < C; ++c) to[c] = {sums[c] / sums[C], squares[c], sums[C]};
}

template <class T, int C>
__device__ void run_block(const LevelConvCall& call, const Tiling& tiling, const Run& run, int unit,
                          int c0, int part, const Place& place, float* shared) {
  constexpr int R = Tiling::kRows;
  const Kind& kind = run.kind();
  const Shape shape = shape_of(kind, call);
  const int area = kind.kernel * kind.kernel, span = call.dilation * (kind.kernel - 1);
  const int stride = call.transposed ? 1 : call.stride;
  const int first_in = run.channel(call.transposed ? 1 : 0) + unit * shape.ins;
  const int first_out = run.channel(call.transposed ? 0 : 1) + unit * shape.outs + c0;
  const int h = (tiling.h() - 1) * stride + span + 1, w = (tiling.w - 1) * stride + span + 1;
  const T* weight = static_cast<const T*>(call.weight) + run.weight(0) + unit * kind.block(0);
  float* weights = shared;
  float* tile = shared + (tiling.chunk * area * C + 3) / 4 * 4;

  const int x = int(threadIdx.x) % tiling.w, strip = int(threadIdx.x) / tiling.w % tiling.strips;
  const int image = int(threadIdx.x) / tiling.w / tiling.strips;
  const bool active = image < place.images;
  const int column = place.x + x, line = place.y + strip * R;
  float acc[C][R];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float b = call.bias ? to_float(static_cast<const T*>(call.bias)[first_out + c]) : 0.f;
#pragma unroll
    for (int r = 0; r < R; ++r) acc[c][r] = b;
  }
  for (int ci = 0; ci < shape.ins; ci += tiling.chunk) {
    const int channels = min(tiling.chunk, shape.ins - ci);
    __syncthreads();
    load_weights_of<T, C>(call, kind, weight, c0, ci, channels, weights);
    if (!tiling.direct) {
      load_tile<T>(call, place, first_in + ci, channels, place.y * stride - shape.pad,
                   place.x * stride - shape.pad, h, w, tile);
    }
    __syncthreads();
    if (!active) continue;
    if (tiling.direct) {
      accumulate_direct<T>(call, kind.kernel, shape.pad, place.n0 + image, first_in + ci, channels,
                           line, column, weights, acc);
    } else {
      const Taps taps{kind.kernel, call.dilation, stride, w, place.images * h * w};
      accumulate(tile + (image * h + strip * R * stride) * w + x * stride, taps, channels, weights,
                 acc);
    }
  }
  bool valid[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    valid[r] = active && line + r < call.y.h && column < call.y.w;
    if (!valid[r]) continue;
    const int64_t at = call.y.offset(place.n0 + image, first_out, line + r, column);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      call.y.write<T>(at + c * call.y.stride_c, activate(call.out, acc[c][r]));
    }
  }
  if (call.moments) {
    write_moments(acc, valid, call.moments + int64_t(part) * call.y.c + first_out, shared);
  }
}

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, 4)
    level_conv_kernel(const __grid_constant__ LevelConvCall call,
                      const __grid_constant__ Tiling tiling, const __grid_constant__ Runs runs) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  const int part = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, item);
  const int outs = shape_of(run.kind(), call).outs, blocks = (outs + kChannels - 1) / kChannels;
  const int unit = (item - run.first()) / blocks;
  const int c0 = (item - run.first()) % blocks * kChannels;
  Place place{};
  place.x = part % tiling.tiles_x * tiling.w;
  place.y = part / tiling.tiles_x % tiling.tiles_y * tiling.h();
  place.n0 = part / tiling.tiles_x / tiling.tiles_y * tiling.images;
  place.images = min(tiling.images, call.y.n - place.n0);
  for_count(min(kChannels, outs - c0), [&](auto count) {
    run_block<T, decltype(count)::value>(call, tiling, run, unit, c0, part, place, shared);
  });
}

template <bool Transposed>
int blocks_of(const Kind& kind) {
  return ceil_div(kind.widths[Transposed ? 0 : 1], kChannels);
}

std::shared_ptr<const WorkList> list_of(const Layer& layer, int level, const LevelConvCall& call) {
  return layer.level(level, call.transposed ? blocks_of<true> : blocks_of<false>);
}

int largest_kernel(const WorkList& list) {
  int kernel = 1;
  for (const Kind& kind : list.kinds) kernel = std::max<int>(kernel, kind.kernel);
  return kernel;
}

Tiling tiling_of(const WorkList& list, const LevelConvCall& call) {
  const int kernel = largest_kernel(list);
  int ins = 1;
  for (const Kind& kind : list.kinds) ins = std::max(ins, shape_of(kind, call).ins);
  const int64_t area = int64_t(kernel) * kernel, span = int64_t(call.dilation) * (kernel - 1);
  const int64_t stride = call.transposed ? 1 : call.stride;
  Tiling t{};
  t.w = std::min(call.y.w, Tiling::kWidth);
  t.strips = std::min(ceil_div(call.y.h, Tiling::kRows), Tiling::kThreads / t.w);
  t.images = std::clamp(Tiling::kThreads / (t.w * t.strips), 1, std::max(1, call.y.n));
  t.tiles_y = ceil_div(call.y.h, t.h());
  t.tiles_x = ceil_div(call.y.w, t.w);
  t.image_groups = ceil_div(call.y.n, t.images);
  const int64_t pixels =
      t.images * ((t.h() - 1) * stride + span + 1) * ((t.w - 1) * stride + span + 1);
  t.direct = (call.transposed && call.stride > 1) ||
             (pixels + area * kChannels) * 4 > Tiling::kSharedBytes;
  t.tile = t.direct ? 0 : int(pixels);
  const int64_t each = t.tile + area * kChannels;
  t.chunk = int(std::clamp<int64_t>(Tiling::kSharedBytes / 4 / each, 1, ins));
  return t;
}

}  // namespace

int64_t level_conv_parts(const Layer& layer, int level, const LevelConvCall& call) {
  const Tiling t = tiling_of(*list_of(layer, level, call), call);
  return int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
}

void level_conv(const Layer& layer, int level, const LevelConvCall& call, const Tensor& like,
                cudaStream_t stream) {
  const auto list = list_of(layer, level, call);
  const Tiling t = tiling_of(*list, call);
  const int kernel = largest_kernel(*list);
  const int64_t weights = (int64_t(t.chunk) * kernel * kernel * kChannels + 3) / 4 * 4;
  const int64_t least = (kChannels + 1) * Tiling::kThreads / 32;  // for the moments
  const int64_t bytes = std::max(weights + int64_t(t.chunk) * t.tile, least) * 4;
  STD_TORCH_CHECK(bytes <= 48 * 1024, "kernels of ", kernel, "x", kernel,
                  " pixels are too large for backend cuda");
  const int64_t tiles = int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
  for (const Runs& runs : list->launches) {
    STD_TORCH_CHECK(tiles * runs.items < (int64_t(1) << 31), "more than 2^31 tiles");
    for_dtype(like, [&](auto type) {
      using T = decltype(type);
      BUNIT_LAUNCH((level_conv_kernel<T>), dim3(unsigned(tiles * runs.items)),
                   dim3(Tiling::kThreads), size_t(bytes), stream, call, t, runs);
    });
    check_launch("level_conv");
  }
}

}  // namespace bunit::gpu
