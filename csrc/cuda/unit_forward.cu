// A block takes a tile of the output of one unit, for one image or several small ones: it reads the
// input tile with its halo once, keeps what lies between levels in shared memory, and writes the
// output once. A 2-4-2 unit of 3x3 kernels does 144 multiply-adds for 4 values moved a pixel.

#include "cuda/unit_forward.h"

#include <algorithm>

#include "cuda/accumulate.cuh"

namespace bunit::gpu {
namespace {

struct Tiling {
  static constexpr int kThreads = 128;
  // Four blocks or more an SM, so that one computes while another reads; more where a tile would
  // otherwise be too small for its halo.
  static constexpr int64_t kSharedBytes = 44 * 1024, kMostSharedBytes = 96 * 1024;
  static constexpr int kPixels = 1024, kFewestPixels = 64;

  int h, w, images;  // of a tile
  int tiles_y, tiles_x, image_groups;
  int weights, first, second;  // floats of shared memory: weights, two buffers in turn
};

struct Region {
  int y, x, h, w;
};

// Where the output of `level` that a tile needs lies in the level's image, perhaps partly outside.
__host__ __device__ inline Region needed(const Run& run, int depth, int dilation, int level,
                                         const Region& tile) {
  const int after = depth - 1 - level, span = dilation * (run.kernel - 1);
  return {tile.y - after * run.pad, tile.x - after * run.pad, tile.h + after * span,
          tile.w + after * span};
}

// The input that a level's output is made of.
__host__ __device__ inline Region input_of(const Run& run, int dilation, int stride,
                                           const Region& out) {
  const int span = dilation * (run.kernel - 1);
  return {out.y * stride - run.pad, out.x * stride - run.pad, (out.h - 1) * stride + span + 1,
          (out.w - 1) * stride + span + 1};
}

__host__ __device__ inline int weight_floats(const Run& run, int level) {
  return (int(run.block(level)) + 3) / 4 * 4;
}

__device__ inline int level_size(int size, const Run& run, int dilation, int stride) {
  return (size + 2 * run.pad - dilation * (run.kernel - 1) - 1) / stride + 1;
}

// As [blocks of channels][taps][channels of the block].
template <class T>
__device__ void pack_weights(const void* source, int64_t begin, int c_out, int taps, float* to) {
  const T* from = static_cast<const T*>(source) + begin;
  for (int i = int(threadIdx.x); i < c_out * taps; i += Tiling::kThreads) {
    const int c = i / taps, t = i % taps, block = c / kChannels * kChannels;
    const int width = min(kChannels, c_out - block);
    to[block * taps + t * width + c - block] = to_float(from[i]);
  }
}

template <class T>
__device__ void load_tile(const View& x, int first_channel, int channels, int n0, int images,
                          const Region& in, float* to) {
  const int lane = int(threadIdx.x) % 32;
  for (int r = int(threadIdx.x) / 32; r < channels * images * in.h; r += Tiling::kThreads / 32) {
    const int y = in.y + r % in.h, image = r / in.h % images, c = r / in.h / images;
    const bool inside = y >= 0 && y < x.h;
    const int64_t row = x.offset(n0 + image, first_channel + c, y, 0);
    for (int i = lane; i < in.w; i += 32) {
      const int column = in.x + i;
      to[r * in.w + i] =
          inside && column >= 0 && column < x.w ? x.read<T>(row + column * x.stride_w) : 0.f;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, 4)
    unit_forward_kernel(const __grid_constant__ UnitForwardCall call,
                        const __grid_constant__ Tiling tiling, const __grid_constant__ Runs runs) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  int tile_index = int(blockIdx.x / unsigned(runs.items));
  const Run& run = runs.of(item);
  const int unit = item - run.first;
  const int tx = tile_index % tiling.tiles_x;
  tile_index /= tiling.tiles_x;
  const Region tile{tile_index % tiling.tiles_y * tiling.h, tx * tiling.w, tiling.h, tiling.w};
  const int n0 = tile_index / tiling.tiles_y * tiling.images;
  const int images = min(tiling.images, call.x.n - n0);

  float* weights = shared;
  for (int l = 0; l < call.depth; ++l) {
    pack_weights<T>(call.weights[l], run.weights[l] + unit * run.block(l), run.widths[l + 1],
                    run.widths[l] * run.kernel * run.kernel, weights);
    weights += weight_floats(run, l);
  }
  float* in = shared + tiling.weights;
  float* out = in + tiling.first;
  Region from =
      input_of(run, call.dilation, call.stride, needed(run, call.depth, call.dilation, 0, tile));
  load_tile<T>(call.x, run.channels[0] + unit * run.widths[0], run.widths[0], n0, images, from, in);
  __syncthreads();

  weights = shared;
  int height = call.x.h, width = call.x.w;
  for (int l = 0; l < call.depth; ++l) {
    const int stride = l == 0 ? call.stride : 1, c_in = run.widths[l], c_out = run.widths[l + 1];
    const bool last = l == call.depth - 1;
    const Region to = needed(run, call.depth, call.dilation, l, tile);
    height = level_size(height, run, call.dilation, stride);
    width = level_size(width, run, call.dilation, stride);
    const Taps taps{run.kernel, call.dilation, stride, from.w, images * from.h * from.w};
    const int first_channel = run.channels[l + 1] + unit * c_out;
    const T* bias = static_cast<const T*>(call.biases[l]);
    for (int c0 = 0; c0 < c_out; c0 += kChannels) {
      for_count(min(kChannels, c_out - c0), [&](auto count) {
        constexpr int C = decltype(count)::value, R = strip_rows(C);
        const int groups = (to.h + R - 1) / R;
#pragma unroll 1
        for (int i = int(threadIdx.x); i < images * groups * to.w; i += Tiling::kThreads) {
          const int x = i % to.w, y = i / to.w % groups * R, image = i / to.w / groups;
          float acc[C][R];
#pragma unroll
          for (int c = 0; c < C; ++c) {
            const float b = bias ? to_float(bias[first_channel + c0 + c]) : 0.f;
#pragma unroll
            for (int r = 0; r < R; ++r) acc[c][r] = b;
          }
          accumulate(in + (image * from.h + y * stride) * from.w + x * stride, taps, c_in,
                     weights + c0 * c_in * run.kernel * run.kernel, acc);
          const int column = to.x + x;
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const int line = to.y + y + r;
            if (y + r >= to.h) continue;
            const bool inside = line >= 0 && line < height && column >= 0 && column < width;
#pragma unroll
            for (int c = 0; c < C; ++c) {
              if (!last) {
                out[((c0 + c) * images + image) * to.h * to.w + (y + r) * to.w + x] =
                    inside ? activate(call.hidden, acc[c][r]) : 0.f;
              } else if (inside) {
                float v = activate(call.out, acc[c][r]);
                const int channel = first_channel + c0 + c;
                if (call.residual.data) {
                  const View& res = call.residual;
                  v += res.read<T>(res.offset(n0 + image, channel, line, column));
                  v = activate(call.after_residual, v);
                }
                call.y.write<T>(call.y.offset(n0 + image, channel, line, column), v);
              }
            }
          }
        }
      });
    }
    __syncthreads();
    weights += weight_floats(run, l);
    from = to;
    float* swap = in;
    in = out;
    out = swap;
  }
}

// Shared memory for tiles of this size; rows that a thread computes in vain read past a buffer.
int64_t floats_needed(const std::vector<Runs>& lists, const UnitForwardCall& call, Tiling& t) {
  t.weights = t.first = t.second = 0;
  int64_t most[2] = {0, 0}, weights = 0;
  for (const Runs& list : lists) {
    for (int r = 0; r < list.count; ++r) {
      const Run& run = list.runs[r];
      int64_t own = 0;
      for (int l = 0; l < call.depth; ++l) {
        own += (run.block(l) + 3) / 4 * 4;
        const int stride = l == 0 ? call.stride : 1;
        const Region in = input_of(run, call.dilation, stride,
                                   needed(run, call.depth, call.dilation, l, {0, 0, t.h, t.w}));
        const int64_t size = int64_t(run.widths[l]) * t.images * in.h * in.w;
        most[l % 2] = std::max(most[l % 2], size + 8 * stride * in.w);
      }
      weights = std::max(weights, own);
    }
  }
  const int64_t total = weights + (most[0] + 3) / 4 * 4 + most[1];
  if (total > Tiling::kMostSharedBytes / 4) return total;
  t.weights = int(weights);
  t.first = int((most[0] + 3) / 4 * 4);
  t.second = int(most[1]);
  return total;
}

bool choose_tiles(const std::vector<Runs>& lists, const UnitForwardCall& call, Tiling& t) {
  for (const int64_t bytes : {Tiling::kSharedBytes, Tiling::kMostSharedBytes}) {
    t.h = std::min(call.y.h, 32);
    t.w = std::min(call.y.w, 32);
    t.images = std::clamp(Tiling::kPixels / (t.h * t.w), 1, std::max(1, call.x.n));
    const int fewest = std::min(Tiling::kFewestPixels, t.h * t.w);
    while (floats_needed(lists, call, t) * 4 > bytes && t.h * t.w * t.images > fewest) {
      int& longest = t.images > 1 ? t.images : t.h >= t.w ? t.h : t.w;
      longest = (longest + 1) / 2;
    }
    if (floats_needed(lists, call, t) * 4 <= bytes) return true;
  }
  return false;
}

}  // namespace

bool unit_forward(const Stack& stack, const UnitForwardCall& call, const Tensor& x,
                  cudaStream_t stream) {
  const std::vector<Runs> lists = runs_of(stack, 0, stack.depth, [](const Run&) { return 1; });
  Tiling t{};
  if (!choose_tiles(lists, call, t)) return false;
  t.tiles_y = ceil_div(call.y.h, t.h);
  t.tiles_x = ceil_div(call.y.w, t.w);
  t.image_groups = ceil_div(call.x.n, t.images);
  const int64_t tiles = int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
  const size_t bytes = size_t(t.weights + t.first + t.second) * sizeof(float);
  for (const Runs& list : lists) {
    STD_TORCH_CHECK(tiles * list.items < (int64_t(1) << 31), "more than 2^31 tiles");
    for_dtype(x, [&](auto type) {
      using T = decltype(type);
      if (bytes > 48 * 1024) {
        cudaFuncSetAttribute(unit_forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(bytes));
      }
      BUNIT_LAUNCH((unit_forward_kernel<T>), dim3(unsigned(tiles * list.items)),
                   dim3(Tiling::kThreads), bytes, stream, call, t, list);
    });
    check_launch("unit_forward");
  }
  return true;
}

}  // namespace bunit::gpu
