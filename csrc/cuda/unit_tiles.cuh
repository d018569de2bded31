// Tiles of images between global and shared memory, along rows or along channels, whichever lie
// next to each other.
#pragma once

#include "cuda/unit_plan.h"
#include "cuda/vectors.cuh"

namespace bunit::gpu {

// What a block works on: units of a run, on a tile of the output of some images.
struct Job {
  Run run;
  int unit, units;  // of the run
  Region tile;
  int n0, images;

  __device__ int channel(int level) const {
    return run.channel(level) + unit * run.kind().widths[level];
  }
};

// Rows of a region, zero outside the image, V columns at a time: the V of a load begin at a
// multiple of V, so that none straddles a border of the image. A thread keeps its columns and steps
// from row to row; a few of its loads are under way at a time.
template <class T, int V>
__device__ void load_rows(const View& x, int channel, int channels, int n0, int images, Region in,
                          float* to, Planes planes) {
  constexpr int kAhead = 4;
  const int first = in.x & -V, loads = (in.x + in.w - first + V - 1) / V;
  const int width = min(loads, Tiling::kThreads), lines = Tiling::kThreads / width;
  const int y0 = int(threadIdx.x) / width, all = channels * images * in.h;
  if (y0 >= lines) return;
  const int64_t ahead = lines * x.stride_h, next_image = x.stride_n - in.h * x.stride_h;
  const int64_t next_channel = x.stride_c - images * x.stride_n;
  const int line_image = planes.image - in.h * planes.pitch;
  const int line_channel = planes.plane - images * planes.image;
  for (int load = int(threadIdx.x) % width; load < loads; load += width) {
    const int column = first + load * V, from = column - in.x;
    const bool present = column >= 0 && column < x.w;
    bool own[V];
    int places[V];
#pragma unroll
    for (int e = 0; e < V; ++e) {
      own[e] = from + e >= 0 && from + e < in.w;
      places[e] = planes.column(from + e);
    }
    const T* p =
        static_cast<const T*>(x.data) + x.offset(n0, channel, in.y + y0, 0) + column * x.stride_w;
    float* line = to + y0 * planes.pitch;
    int y = y0, image = 0;
    for (int i = y0; i < all; i += kAhead * lines) {
      float values[kAhead][V];
      float* rows[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        while (y >= in.h) {
          y -= in.h, p += next_image, line += line_image;
          if (++image == images) image = 0, p += next_channel, line += line_channel;
        }
#pragma unroll
        for (int e = 0; e < V; ++e) values[k][e] = 0.f;
        if (present && i + k * lines < all && unsigned(in.y + y) < unsigned(x.h)) {
          read_values<T, V>(p, values[k]);
        }
        rows[k] = line;
        y += lines;
        p += ahead;
        line += lines * planes.pitch;
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (i + k * lines >= all) break;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          if (own[e]) rows[k][places[e]] = values[k][e];
        }
      }
    }
  }
}

// The same, V channels at a time.
template <class T, int V>
__device__ void load_channels(const View& x, int channel, int channels, int n0, int images,
                              Region in, float* to, Planes planes) {
  const Divider loads(channels / V), columns(in.w), rows(in.h);
  const int all = images * in.h * in.w * int(loads.by);
#pragma unroll 4
  for (int i = int(threadIdx.x); i < all; i += Tiling::kThreads) {
    int image = i;
    const int c = loads.split(image) * V, column = columns.split(image), row = rows.split(image);
    const int y = in.y + row, xx = in.x + column;
    float values[V] = {};
    if (y >= 0 && y < x.h && xx >= 0 && xx < x.w) {
      const T* from = static_cast<const T*>(x.data) + x.offset(n0 + image, channel + c, y, xx);
      read_values<T, V>(from, values);
    }
    float* at =
        to + c * planes.plane + image * planes.image + row * planes.pitch + planes.column(column);
#pragma unroll
    for (int e = 0; e < V; ++e) at[e * planes.plane] = values[e];
  }
}

template <class T, int V>
__device__ void load_tile(const View& x, int channel, int channels, int n0, int images, Region in,
                          float* to, Planes planes) {
  if (x.stride_c == 1) {
    load_channels<T, V>(x, channel, channels, n0, images, in, to, planes);
  } else {
    load_rows<T, V>(x, channel, channels, n0, images, in, to, planes);
  }
}

// `vector` elements at a time (of rows or channels), fewer where the channels do not allow it.
template <class T>
__device__ void load_tile(const View& x, int vector, int channel, int channels, int n0, int images,
                          Region in, float* to, Planes planes) {
  if (x.stride_c == 1) {
    while ((channel | channels) & (vector - 1)) vector /= 2;
  }
  if (vector == 4) {
    load_tile<T, 4>(x, channel, channels, n0, images, in, to, planes);
  } else if (vector == 2) {
    load_tile<T, 2>(x, channel, channels, n0, images, in, to, planes);
  } else {
    load_tile<T, 1>(x, channel, channels, n0, images, in, to, planes);
  }
}

// What a unit's last level gave, through activation and residual, to the output: neighbouring
// threads take what lies next to each other there.
template <class T>
__device__ void store_tile(const UnitForwardCall& call, const Job& job, const float* from,
                           const Planes& planes) {
  const View &y = call.y, &res = call.residual;
  const int first = job.channel(call.depth);
  const int channels = job.units * job.run.kind().widths[call.depth];
  const Divider count(channels), columns(min(job.tile.w, y.w - job.tile.x)),
      rows(min(job.tile.h, y.h - job.tile.y));
  const bool by_channel = y.stride_c == 1;
  const int all = channels * job.images * int(columns.by * rows.by);
#pragma unroll 1
  for (int i = int(threadIdx.x); i < all; i += Tiling::kThreads) {
    int image = i;
    int c = by_channel ? count.split(image) : 0;
    const int column = columns.split(image), row = rows.split(image);
    if (!by_channel) c = count.split(image);
    const int n = job.n0 + image, line = job.tile.y + row, xx = job.tile.x + column;
    float v = from[c * planes.plane + image * planes.image + row * planes.pitch + column];
    v = activate(call.out, v);
    if (res.data) {
      v += res.read<T>(res.offset(n, first + c, line, xx));
      v = activate(call.after_residual, v);
    }
    y.write<T>(y.offset(n, first + c, line, xx), v);
  }
}

}  // namespace bunit::gpu
