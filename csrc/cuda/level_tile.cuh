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

// How a source is read (Source in values.cuh), known when compiled: as it is, through a norm and
// its activation, or as the gradient before a norm, which takes what the norm was given too.
enum class Read { plain, normed, gradient };

// Threads take neighbouring columns, or where channels lie next to each other, these of
// neighbouring columns. A thread keeps its column, so that addresses are worked out once and then
// stepped from row to row; a few reads of each are under way at a time.
template <class T, int Threads, Read As>
__device__ __forceinline__ void load_window_as(const Source& source, int first, int channels,
                                               const Window& at, float* to) {
  constexpr int kAhead = 4;
  const View& view = source.view;
  const int across = view.stride_c == 1 ? min(channels, Threads) : 1, step = Threads / across;
  const int width = min(at.w, step), lines = step / width;
  const int pixel = int(threadIdx.x) / across;
  if (pixel >= lines * width) return;
  const int y0 = pixel / width, pixels = at.plane(), all_lines = at.images * at.h;
  const int64_t ahead = lines * view.stride_h, next_image = view.stride_n - at.h * view.stride_h;
  int64_t z_ahead = 0, next_z_image = 0;
  if constexpr (As == Read::gradient) {
    z_ahead = lines * source.z.stride_h;
    next_z_image = source.z.stride_n - at.h * source.z.stride_h;
  }
  for (int c = int(threadIdx.x) % across; c < channels; c += across) {
    const Source::Channel channel = source.channel(first + c);
    const ChannelNorm& own = channel.norm;
    for (int x = pixel % width; x < at.w; x += width) {
      const bool column = unsigned(at.x + x) < unsigned(view.w);
      const T* p =
          static_cast<const T*>(view.data) + view.offset(at.n0, first + c, at.y + y0, at.x + x);
      const T* q = nullptr;
      if constexpr (As == Read::gradient) {
        q = static_cast<const T*>(source.z.data) +
            source.z.offset(at.n0, first + c, at.y + y0, at.x + x);
      }
      float* line = to + c * pixels + y0 * at.w + x;
      int y = y0;
      for (int l = y0; l < all_lines; l += kAhead * lines) {
        float values[kAhead], zs[kAhead];
        bool inside[kAhead];
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          while (y >= at.h) {
            y -= at.h, p += next_image;
            if constexpr (As == Read::gradient) q += next_z_image;
          }
          inside[k] = column && l + k * lines < all_lines && unsigned(at.y + y) < unsigned(view.h);
          values[k] = inside[k] ? to_float(*p) : 0.f;
          if constexpr (As == Read::gradient) zs[k] = inside[k] ? to_float(*q) : 0.f;
          y += lines;
          p += ahead;
          if constexpr (As == Read::gradient) q += z_ahead;
        }
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
          float v = values[k];
          if constexpr (As == Read::normed) {
            v = activate(source.activation, (v - own.mean) * own.scale + own.shift);
          } else if constexpr (As == Read::gradient) {
            const float d = zs[k] - own.mean;
            const float g = activation_grad(source.activation, d * own.scale + own.shift, v);
            v = own.scale * (g - channel.mean_g - d * own.inv_std * channel.mean_gz);
          }
          if (As != Read::plain && !inside[k]) v = 0.f;
          if (l + k * lines < all_lines) line[k * lines * at.w] = v;
        }
        line += kAhead * lines * at.w;
      }
    }
  }
}

// Fills `to` [channels][images][h][w] with what `source` holds there, 0 outside.
template <class T, int Threads>
__device__ void load_window(const Source& source, int first, int channels, const Window& at,
                            float* to) {
  if (!source.norm.mean) {
    load_window_as<T, Threads, Read::plain>(source, first, channels, at, to);
  } else if (!source.mean_g) {
    load_window_as<T, Threads, Read::normed>(source, first, channels, at, to);
  } else {
    load_window_as<T, Threads, Read::gradient>(source, first, channels, at, to);
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
