// A block takes tiles of the level's output, one after the other, for one unit, or for some of its
// channels where they are many: it reads the gradient, and the input with its halo, each through
// its norm where it has one and once into shared memory. Sums stay in shared memory until the block
// is done; a second kernel adds up what blocks leave, in a fixed order, so that results repeat.
//
// Training takes both gradients of a level of stride 1 in one pass (level_backward.cu); this is for
// the rest.

#include "cuda/level_grad_weight.h"

#include <algorithm>

#include "cuda/level_tile.cuh"
#include "cuda/tap_sums.cuh"

namespace bunit::gpu {
namespace {

struct Tiling {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int64_t kSharedBytes = 48 * 1024;
  static constexpr int kSize = 32, kPixels = 1024, kFewestPixels = 64;
  static constexpr int kBlocks = 8;         // wanted for each processor: twice what runs at once
  static constexpr int kMostChannels = 16;  // of input and output that a block takes

  int h, w, images;  // of a tile
  int tiles_y, tiles_x, image_groups;
  int ins, outs;  // channels that a block takes at most
  int parts;      // blocks that share the tiles
  // Where taps reach too far for one window of all of them: a window for each, one after the other.
  bool tap_by_tap;

  __host__ __device__ int tiles() const { return tiles_y * tiles_x * image_groups; }
  __host__ __device__ int groups(int channels, int most) const {
    return (channels + most - 1) / most;
  }
};

using Tasks = TapTasks<Tiling::kWarps>;

// Floats of shared memory that each of a block's arrays takes, one after the other.
struct Layout {
  int kernel;  // of the taps that one window serves
  int h, w;    // of the input's window
  int grads, xs, totals;
  int64_t all;

  __host__ __device__ Layout(const LevelGradWeightCall& call, const Tiling& tiling,
                             int whole_kernel, int ins, int outs)
      : kernel(tiling.tap_by_tap ? 1 : whole_kernel) {
    const int64_t span = int64_t(call.dilation) * (kernel - 1);
    const int64_t rows = int64_t(tiling.h - 1) * call.stride + span + 1;
    const int64_t columns = int64_t(tiling.w - 1) * call.stride + span + 1;
    const int64_t taps = int64_t(ins) * whole_kernel * whole_kernel;
    const int64_t own = int64_t(outs) * tiling.images * tiling.h * tiling.w;
    const int64_t read = ins * tiling.images * rows * columns;
    // And a bias for each channel.
    const int64_t sums = Tasks(outs, ins * kernel * kernel).slices * outs * taps + outs;
    h = int(rows);
    w = int(columns);
    grads = int(own);
    xs = int(read);
    totals = int(sums);
    all = own + read + sums;
  }
};

template <class T, bool TapByTap>
__global__ void __launch_bounds__(Tiling::kThreads, TapByTap ? 2 : 4)
    level_grad_weight_kernel(const __grid_constant__ LevelGradWeightCall call,
                             const __grid_constant__ Tiling tiling,
                             const __grid_constant__ Runs runs, float* parts, int64_t part_size,
                             int64_t weight_size) {
  BUNIT_DYNAMIC_SHARED(float, shared);
  const int item = int(blockIdx.x % unsigned(runs.items));
  const int part = int(blockIdx.x / unsigned(runs.items));
  const Run run(runs, item);
  const Kind& kind = run.kind();
  const LevelUnit unit(run, (item - run.first()) / kind.items);
  const int group = (item - run.first()) % kind.items;
  const int in_groups = tiling.groups(kind.widths[0], tiling.ins);
  const int ci0 = group % in_groups * tiling.ins, co0 = group / in_groups * tiling.outs;
  const int ins = min(tiling.ins, kind.widths[0] - ci0);
  const int outs = min(tiling.outs, kind.widths[1] - co0);
  const int first_in = unit.first_in + ci0, first_out = unit.first_out + co0;
  const int area = kind.kernel * kind.kernel, taps = ins * area;
  const bool with_bias = ci0 == 0 && part_size > weight_size;

  const Layout layout(call, tiling, kind.kernel, ins, outs);
  const Tasks tasks(outs, ins * layout.kernel * layout.kernel);
  const int windows = TapByTap ? area : 1;
  float *grads = shared, *xs = grads + layout.grads, *totals = xs + layout.xs;
  float* biases = totals + tasks.slices * outs * taps;
  for (int i = int(threadIdx.x); i < layout.totals; i += Tiling::kThreads) totals[i] = 0.f;

  const View& out = call.grad.view;
  for (int tile = part; tile < tiling.tiles(); tile += tiling.parts) {
    const int x = tile % tiling.tiles_x * tiling.w;
    const int y = tile / tiling.tiles_x % tiling.tiles_y * tiling.h;
    const int n0 = tile / tiling.tiles_x / tiling.tiles_y * tiling.images;
    const Window own{n0, min(tiling.images, out.n - n0), y, x, tiling.h, tiling.w};
    for (int i = 0; i < windows; ++i) {
      const int down = TapByTap ? i / kind.kernel * call.dilation : 0;
      const int right = TapByTap ? i % kind.kernel * call.dilation : 0;
      const Window read{n0,
                        own.images,
                        y * call.stride - kind.pad + down,
                        x * call.stride - kind.pad + right,
                        layout.h,
                        layout.w};
      __syncthreads();
      if (i == 0) load_window<T, Tiling::kThreads>(call.grad, first_out, outs, own, grads);
      load_window<T, Tiling::kThreads>(call.x, first_in, ins, read, xs);
      __syncthreads();
      const TapPixels pixels{own.images,
                             min(tiling.h, out.h - y),
                             min(tiling.w, out.w - x),
                             own.w,
                             own.h * own.w,
                             own.plane(),
                             read.w,
                             read.h * read.w,
                             read.plane(),
                             layout.kernel,
                             call.dilation,
                             call.stride};
      tasks.run(grads, xs, pixels, [&](int slice, int co, int tap, float sum) {
        totals[(slice * outs + co) * taps + tap * windows + i] += sum;
      });
    }
    if (!with_bias) continue;
    for (int co = int(threadIdx.x) / 32; co < outs; co += Tiling::kWarps) {
      float sum[1] = {};
      for (int i = int(threadIdx.x) % 32; i < own.plane(); i += 32) {
        sum[0] += grads[co * own.plane() + i];  // 0 outside the image
      }
      if (warp_spread<1>(sum).count > 0) biases[co] += sum[0];
    }
  }
  __syncthreads();
  float* to = parts + part * part_size;
  for (int i = int(threadIdx.x); i < outs * taps; i += Tiling::kThreads) {
    float total = totals[i];
    for (int s = 1; s < tasks.slices; ++s) total += totals[s * outs * taps + i];
    to[unit.weight + (int64_t(co0 + i / taps) * kind.widths[0] + ci0) * area + i % taps] = total;
  }
  if (!with_bias) return;
  for (int i = int(threadIdx.x); i < outs; i += Tiling::kThreads) {
    to[weight_size + first_out + i] = biases[i];
  }
}

// The most that fits, pixels before channels: a block's input is read once for all of its output
// channels and the other way round.
Tiling choose_tiles(const Stack& stack, int level, const LevelGradWeightCall& call) {
  const View& out = call.grad.view;
  Tiling t{};
  t.h = ceil_div(out.h, ceil_div(out.h, Tiling::kSize));
  t.w = ceil_div(out.w, ceil_div(out.w, Tiling::kSize));
  t.images = std::clamp(Tiling::kPixels / (t.h * t.w), 1, std::max(1, out.n));
  t.ins = t.outs = 1;
  for (const Unit& unit : stack.units) {
    t.ins = std::max(t.ins, unit.widths[level]);
    t.outs = std::max(t.outs, unit.widths[level + 1]);
  }
  t.ins = std::min(t.ins, Tiling::kMostChannels);
  t.outs = std::min(t.outs, Tiling::kMostChannels);
  const auto bytes = [&] {
    int64_t most = 0;
    for (const Unit& unit : stack.units) {
      most = std::max(most, Layout(call, t, unit.kernel, std::min(t.ins, unit.widths[level]),
                                   std::min(t.outs, unit.widths[level + 1]))
                                    .all *
                                4);
    }
    return most;
  };
  const Tiling largest = t;
  const auto smaller = [&] {
    const int pixels = t.images * t.h * t.w;
    int& more = pixels > 256 || (t.ins == 1 && t.outs == 1) ? (t.images > 1 ? t.images
                                                               : t.h >= t.w ? t.h
                                                                            : t.w)
                                                            : (t.ins >= t.outs ? t.ins : t.outs);
    if (more == 1 || (!t.tap_by_tap && t.ins * t.outs == 1 && pixels <= Tiling::kFewestPixels)) {
      return false;
    }
    more = (more + 1) / 2;
    return true;
  };
  while (bytes() > Tiling::kSharedBytes) {
    if (smaller()) continue;
    STD_TORCH_CHECK(!t.tap_by_tap, "kernels of so many pixels are too large for backend cuda");
    t = largest;
    t.tap_by_tap = true;
  }
  t.tiles_y = ceil_div(out.h, t.h);
  t.tiles_x = ceil_div(out.w, t.w);
  t.image_groups = ceil_div(out.n, t.images);
  return t;
}

}  // namespace

void level_grad_weight(const Layer& layer, int level, const LevelGradWeightCall& call,
                       Array grad_weight, Array grad_bias, const Context& on) {
  const int64_t weights = grad_weight.size;
  const View& out = call.grad.view;
  if (int64_t(out.n) * out.h * out.w == 0) {
    for (const Array& zeros : {grad_weight, grad_bias}) {
      const size_t bytes = size_t(zeros.size) * size_t(element_size(on.dtype));
      if (bytes) cudaMemsetAsync(zeros.data, 0, bytes, on.stream);
    }
    check_launch("level_grad_weight");
    return;
  }
  Tiling t = choose_tiles(layer.stack, level, call);
  const auto list = layer.level(level, t.ins, t.outs);
  const int64_t tiles = int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
  STD_TORCH_CHECK(tiles < (int64_t(1) << 31), "more than 2^31 tiles");
  const int64_t wanted = ceil_div(int64_t(processors()) * Tiling::kBlocks, list->items);
  t.parts = ceil_div(tiles, ceil_div(tiles, std::min(tiles, wanted)));
  PartSums sums{nullptr, t.parts, 0, {}};
  const int64_t row = sums.row(weights, grad_bias.size);
  float* const parts = on.workspace(t.parts * row);
  sums.parts = parts;
  int64_t bytes = 0;
  for (const Kind& kind : list->kinds) {
    const Layout layout(call, t, kind.kernel, std::min<int>(t.ins, kind.widths[0]),
                        std::min<int>(t.outs, kind.widths[1]));
    bytes = std::max(bytes, layout.all * 4);
  }
  for (const Runs& runs : list->launches) {
    STD_TORCH_CHECK(int64_t(t.parts) * runs.items < (int64_t(1) << 31), "more than 2^31 blocks");
    for_dtype(on.dtype, [&](auto type) {
      using T = decltype(type);
      const auto launch = [&](auto tap_by_tap) {
        BUNIT_LAUNCH((level_grad_weight_kernel<T, decltype(tap_by_tap)::value>),
                     dim3(unsigned(t.parts * runs.items)), dim3(Tiling::kThreads), size_t(bytes),
                     on.stream, call, t, runs, parts, row, weights);
      };
      t.tap_by_tap ? launch(std::true_type()) : launch(std::false_type());
    });
    check_launch("level_grad_weight");
  }
  finish_sums(sums, grad_weight, grad_bias, on);
}

}  // namespace bunit::gpu
