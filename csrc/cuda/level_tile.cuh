// What the kernels of a level keep in shared memory: windows of images, and weights.
#pragma once

#include "cuda/accumulate.cuh"
#include "cuda/values.cuh"

namespace bunit::gpu {

// Images and pixels of a tile, perhaps partly outside the image.
struct Window {
  int n0, images, y, x, h, w;

  __host__ __device__ int plane() const { return images * h * w; }
};

// Fills `to` [channels][images][h][w] with what `source` holds there, 0 outside. Threads take
// neighbouring pixels, or where channels lie next to each other, these of neighbouring pixels; a
// few reads of each are under way at a time.
template <class T, int Threads>
__device__ void load_window(const Source& source, int first, int channels, const Window& at,
                            float* to) {
  constexpr int kAhead = 4;
  const View& view = source.view;
  const int across = view.stride_c == 1 ? min(channels, Threads) : 1, step = Threads / across;
  if (int(threadIdx.x) >= step * across) return;
  const int begin = int(threadIdx.x) / across, pixels = at.plane();
  const int dx = step % at.w, dy = step / at.w;
  for (int c = int(threadIdx.x) % across; c < channels; c += across) {
    const Source::Channel channel = source.channel(first + c);
    float* plane = to + c * pixels;
    int x = begin % at.w, y = begin / at.w, image = 0;
    for (int i = begin; i < pixels; i += kAhead * step) {
      float values[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        while (y >= at.h) y -= at.h, ++image;
        const int line = at.y + y, column = at.x + x;
        const bool inside =
            image < at.images && line >= 0 && line < view.h && column >= 0 && column < view.w;
        values[k] = inside ? source.read<T>(channel, at.n0 + image, line, column) : 0.f;
        x += dx;
        y += dy;
        if (x >= at.w) x -= at.w, ++y;
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (i + k * step < pixels) plane[i + k * step] = values[k];
      }
    }
  }
}

// A unit's weight of one level [outs][ins][area], and whether the convolution runs from its output
// to its input, and then with its taps turned (at stride 1).
struct UnitWeight {
  int64_t begin;
  int ins, area;
  bool transposed, turned;
};

// Weights that lead from channels [from, from + channels) to channels [to, to + width), as
// accumulate() takes them: [channels][area][width].
template <class T, int Threads>
__device__ void load_weights_of(const void* weight, const UnitWeight& unit, int from, int channels,
                                int to, int width, float* packed) {
  const T* source = static_cast<const T*>(weight) + unit.begin;
  for (int i = int(threadIdx.x); i < channels * unit.area * width; i += Threads) {
    const int c = to + i % width, t = i / width % unit.area, k = from + i / width / unit.area;
    const int row = unit.transposed ? k * unit.ins + c : c * unit.ins + k;
    packed[i] = to_float(source[row * unit.area + (unit.turned ? unit.area - 1 - t : t)]);
  }
}

// The same for all of a unit's channels, a block of up to kChannels `to` after the other.
template <class T, int Threads>
__device__ void load_all_weights(const void* weight, const UnitWeight& unit, int from_channels,
                                 int to_channels, float* packed) {
  for (int to = 0; to < to_channels; to += kChannels) {
    load_weights_of<T, Threads>(weight, unit, 0, from_channels, to,
                                min(kChannels, to_channels - to),
                                packed + to * from_channels * unit.area);
  }
}

}  // namespace bunit::gpu
