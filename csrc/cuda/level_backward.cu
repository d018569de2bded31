// A block takes tiles of the level's input for one unit, one after the other: it reads the gradient
// of the output with its halo, through the norm, and the input, each once and for all channels of
// the unit, and makes both gradients of them. The weight's gradient is taken as a sum over pixels
// of the input, so that it needs the same halo as the input's. Its sums, and those that the norm
// before the level needs, stay in shared memory until the block is done.

#include "cuda/level_backward.h"

#include <algorithm>

#include "cuda/level_tile.cuh"
#include "cuda/tap_sums.cuh"

namespace bunit::gpu {
namespace {

struct Tiling {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  // Four blocks or more an SM, so that one computes while another reads; two for wide units.
  static constexpr int64_t kSharedBytes = 55 * 1024, kMostSharedBytes = 96 * 1024;
  static constexpr int kSize = 32, kPixels = 1024, kFewestPixels = 64;
  static constexpr int kBlocks = 8;  // wanted for each processor: twice what runs at once

  int h, w, images;  // of a tile
  int tiles_y, tiles_x, image_groups;
  int parts;  // blocks that share the tiles

  __host__ __device__ int tiles() const { return tiles_y * tiles_x * image_groups; }
};

using Tasks = TapTasks<Tiling::kWarps>;

// Floats of shared memory that each of a block's arrays takes, one after the other.
struct Layout {
  int ins, outs, area, span;  // of the unit
  int weights, grads, xs, totals, sums;
  int64_t all;

  __host__ __device__ Layout(const Kind& kind, const Tiling& tiling, int dilation)
      : ins(kind.widths[0]),
        outs(kind.widths[1]),
        area(kind.kernel * kind.kernel),
        span(dilation * (kind.kernel - 1)) {
    const int64_t weight = kind.block(0), pixels = int64_t(tiling.images) * tiling.h * tiling.w;
    // A strip of up to 8 rows reads past the tile's last row.
    const int64_t halo = outs * int64_t(tiling.images) * (tiling.h + span) + 8;
    const int64_t sizes[] = {(weight + 3) / 4 * 4, halo * (tiling.w + span), ins * pixels,
                             Tasks(ins, outs * area).slices * weight, 2 * ins * Tiling::kWarps};
    weights = int(sizes[0]);
    grads = int(sizes[1]);
    xs = int(sizes[2]);
    totals = int(sizes[3]);
    sums = int(sizes[4]);
    all = sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4];
  }
};

// What a block works with.
struct Block {
  Layout layout;
  Window x, grad;  // windows of the input, and of the gradient with its halo
  int h, w;        // of x, pixels inside the image
  int first_x;     // channel
  float *weights, *grads, *xs, *totals, *sums;
};

// The gradient of a few channels' input. Where there is a norm before the level, takes it through
// the activation, adds up what that norm's gradient needs, and leaves x activated.
template <class T, int C>
__device__ void input_grads(const LevelBackwardCall& call, const Block& block, int kernel, int c0) {
  constexpr int R = strip_rows(C);
  const Window &at = block.x, &from = block.grad;
  const int strips = (block.h + R - 1) / R, outs = block.layout.outs;
  const Taps taps{kernel, call.dilation, 1, from.w, from.plane()};
  const float* weights = block.weights + c0 * outs * block.layout.area;
  const bool norm = call.x.norm.mean != nullptr;
  ChannelNorm norms[C];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (norm) norms[c] = ChannelNorm(call.x.norm, block.first_x + c0 + c);
  }
  float sums[2 * C] = {};
#pragma unroll 1
  for (int i = int(threadIdx.x); i < at.images * strips * block.w; i += Tiling::kThreads) {
    const int x = i % block.w, y = i / block.w % strips * R, image = i / block.w / strips;
    float acc[C][R] = {};
    accumulate(block.grads + (image * from.h + y) * from.w + x, taps, outs, weights, acc);
    const int64_t to = call.grad_x.offset(at.n0 + image, block.first_x + c0, at.y + y, at.x + x);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (y + r >= block.h) break;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        float g = acc[c][r];
        if (norm) {
          float& own = block.xs[(c0 + c) * at.plane() + (image * at.h + y + r) * at.w + x];
          const float d = own - norms[c].mean, n = d * norms[c].scale + norms[c].shift;
          own = activate(call.x.activation, n);
          g = activation_grad(call.x.activation, n, g);
          sums[2 * c] += g;
          sums[2 * c + 1] += g * d;
        }
        call.grad_x.write<T>(to + c * call.grad_x.stride_c + r * call.grad_x.stride_h, g);
      }
    }
  }
  if (!norm) return;
  const Spread held = warp_spread<2 * C>(sums);
  float* own = block.sums + int(threadIdx.x) / 32 * 2 * block.layout.ins + 2 * c0;
  if (held.count > 0) own[held.first] += sums[0];
}

__device__ void weight_grads(const LevelBackwardCall& call, const Block& block, int kernel) {
  const Layout& layout = block.layout;
  const Window &at = block.x, &from = block.grad;
  const TapPixels pixels{at.images,    block.h,    block.w,       at.w,
                         at.h * at.w,  at.plane(), from.w,        from.h * from.w,
                         from.plane(), kernel,     call.dilation, 1};
  const int size = layout.ins * layout.outs * layout.area;
  Tasks(layout.ins, layout.outs * layout.area)
      .run(block.xs, block.grads, pixels, [&](int slice, int ci, int tap, float sum) {
        const int co = tap / layout.area, t = layout.area - 1 - tap % layout.area;
        block.totals[slice * size + (co * layout.ins + ci) * layout.area + t] += sum;
      });
}

// Adds up slices and warps, and writes the block's part.
__device__ void write_parts(const LevelBackwardCall& call, const Block& block, float* weights,
                            float* sums) {
  const Layout& layout = block.layout;
  const int size = layout.ins * layout.outs * layout.area;
  const int slices = Tasks(layout.ins, layout.outs * layout.area).slices;
  for (int i = int(threadIdx.x); i < size; i += Tiling::kThreads) {
    float total = block.totals[i];
    for (int s = 1; s < slices; ++s) total += block.totals[s * size + i];
    weights[i] = total;
  }
  if (!call.x.norm.mean) return;
  for (int i = int(threadIdx.x); i < 2 * layout.ins; i += Tiling::kThreads) {
    float total = block.sums[i];
    for (int w = 1; w < Tiling::kWarps; ++w) total += block.sums[w * 2 * layout.ins + i];
    const int c = block.first_x + i / 2;
    sums[2 * block.first_x + i] = i % 2 == 0 ? total : total * call.x.norm.inv_std[c];
  }
}

template <class T>
__global__ void __launch_bounds__(Tiling::kThreads, 4)
    level_backward_kernel(const __grid_constant__ LevelBackwardCall call,
                          const __grid_constant__ Tiling tiling, const __grid_constant__ Runs runs,
                          float* parts, int64_t part_size, int64_t weight_size) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int unit_item = int(blockIdx.x % unsigned(runs.items));
  const int part = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, unit_item);
  const LevelUnit unit(run, unit_item - run.first());
  const Kind& kind = unit.kind;
  Block block{Layout(kind, tiling, call.dilation)};
  const Layout& layout = block.layout;
  block.weights = shared;
  block.grads = block.weights + layout.weights;
  block.xs = block.grads + layout.grads;
  block.totals = block.xs + layout.xs;
  block.sums = block.totals + layout.totals;
  block.first_x = unit.first_in;
  load_all_weights<T, Tiling::kThreads>(call.weight,
                                        {unit.weight, layout.ins, layout.area, true, true},
                                        layout.outs, layout.ins, block.weights);
  for (int i = int(threadIdx.x); i < layout.totals + layout.sums; i += Tiling::kThreads) {
    block.totals[i] = 0.f;
  }
  Source raw = call.x;
  raw.norm.mean = nullptr;
  const View& image = call.x.view;
  for (int tile = part; tile < tiling.tiles(); tile += tiling.parts) {
    const int x = tile % tiling.tiles_x * tiling.w;
    const int y = tile / tiling.tiles_x % tiling.tiles_y * tiling.h;
    const int n0 = tile / tiling.tiles_x / tiling.tiles_y * tiling.images;
    const int images = min(tiling.images, image.n - n0), halo = layout.span - kind.pad;
    block.h = min(tiling.h, image.h - y);
    block.w = min(tiling.w, image.w - x);
    block.x = {n0, images, y, x, tiling.h, tiling.w};
    block.grad = {n0, images, y - halo, x - halo, tiling.h + layout.span, tiling.w + layout.span};
    __syncthreads();
    load_window<T, Tiling::kThreads>(call.grad, unit.first_out, layout.outs, block.grad,
                                     block.grads);
    load_window<T, Tiling::kThreads>(raw, block.first_x, layout.ins, block.x, block.xs);
    __syncthreads();
    for (int c0 = 0; c0 < layout.ins; c0 += kChannels) {
      for_count(min(kChannels, layout.ins - c0), [&](auto count) {
        input_grads<T, decltype(count)::value>(call, block, kind.kernel, c0);
      });
    }
    __syncthreads();
    weight_grads(call, block, kind.kernel);
  }
  __syncthreads();
  float* to = parts + part * part_size;
  write_parts(call, block, to + unit.weight, to + weight_size);
}

// Bytes of shared memory that the largest kind takes.
int64_t shared_bytes(const WorkList& list, const LevelBackwardCall& call, const Tiling& t) {
  int64_t most = 0;
  for (const Kind& kind : list.kinds) {
    most = std::max(most, Layout(kind, t, call.dilation).all * 4);
  }
  return most;
}

bool choose_tiles(const WorkList& list, const LevelBackwardCall& call, Tiling& t) {
  const View& x = call.x.view;
  for (const int64_t limit : {Tiling::kSharedBytes, Tiling::kMostSharedBytes}) {
    // Tiles of one size, rather than a small one at the end.
    t.h = ceil_div(x.h, ceil_div(x.h, Tiling::kSize));
    t.w = ceil_div(x.w, ceil_div(x.w, Tiling::kSize));
    t.images = std::clamp(Tiling::kPixels / (t.h * t.w), 1, std::max(1, x.n));
    const int fewest = std::min(Tiling::kFewestPixels, t.h * t.w);
    while (shared_bytes(list, call, t) > limit && t.h * t.w * t.images > fewest) {
      int& longest = t.images > 1 ? t.images : t.h >= t.w ? t.h : t.w;
      longest = (longest + 1) / 2;
    }
    if (shared_bytes(list, call, t) <= limit) return true;
  }
  return false;
}

}  // namespace

bool level_backward(const Layer& layer, int level, const LevelBackwardCall& call, Array grad_weight,
                    const NormGrads& before, const Context& on) {
  const auto list = layer.level(level);
  Tiling t{};
  if (!choose_tiles(*list, call, t)) return false;
  t.tiles_y = ceil_div(call.x.view.h, t.h);
  t.tiles_x = ceil_div(call.x.view.w, t.w);
  t.image_groups = ceil_div(call.x.view.n, t.images);
  const int64_t tiles = int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
  STD_TORCH_CHECK(tiles < (int64_t(1) << 31), "more than 2^31 tiles");
  const int64_t wanted = ceil_div(int64_t(processors()) * Tiling::kBlocks, list->items);
  t.parts = ceil_div(tiles, ceil_div(tiles, std::min(tiles, wanted)));
  const bool norm = call.x.norm.mean != nullptr;
  PartSums sums{nullptr, t.parts, norm ? call.x.view.c : 0, before};
  const int64_t weights = grad_weight.size, row = sums.row(weights, 0);
  float* const parts = on.workspace(t.parts * row);
  sums.parts = parts;
  const int64_t bytes = shared_bytes(*list, call, t);
  for (const Runs& runs : list->launches) {
    STD_TORCH_CHECK(int64_t(t.parts) * runs.items < (int64_t(1) << 31), "more than 2^31 blocks");
    for_dtype(on.dtype, [&](auto type) {
      using T = decltype(type);
      if (bytes > 48 * 1024) {
        cudaFuncSetAttribute(level_backward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(bytes));
      }
      BUNIT_LAUNCH((level_backward_kernel<T>), dim3(unsigned(t.parts * runs.items)),
                   dim3(Tiling::kThreads), size_t(bytes), on.stream, call, t, runs, parts, row,
                   weights);
    });
    check_launch("level_backward");
  }
  finish_sums(sums, grad_weight, {}, on);
  return true;
}

}  // namespace bunit::gpu
