// Whole images gone through in the order in which they lie, 16 bytes at a time where they are dense
// and aligned: planes of one channel, or where channels lie inside, rows of them. Other strides
// take the way of the planes, a pixel at a time.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "cuda/launch.h"

namespace bunit::gpu {

template <class T, int Values>
struct alignas(Values * sizeof(T)) Pack {
  T values[Values];
};

// Values from element `at` on, as many as fit 16 bytes or one.
template <class T, int Values>
__device__ __forceinline__ void load_values(const View& from, int64_t at, float (&to)[Values]) {
  const auto pack =
      *reinterpret_cast<const Pack<T, Values>*>(static_cast<const T*>(from.data) + at);
#pragma unroll
  for (int i = 0; i < Values; ++i) to[i] = to_float(pack.values[i]);
}
template <class T, int Values>
__device__ __forceinline__ void store_values(const View& to, int64_t at,
                                             const float (&from)[Values]) {
  Pack<T, Values> pack;
#pragma unroll
  for (int i = 0; i < Values; ++i) pack.values[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, Values>*>(static_cast<T*>(const_cast<void*>(to.data)) + at) = pack;
}

// How threads share rows of values that lie next to each other: `lanes` threads a row, kThreads /
// lanes rows at a time.
struct Rows {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 16;  // for each processor, which runs as many of them at once

  bool inside;  // rows of channels; otherwise planes
  int vectors;  // in a row
  int lanes;
  int64_t count;  // of rows

  __device__ int lane() const { return int(threadIdx.x) % lanes; }
  __device__ int row() const { return int(threadIdx.x) / lanes; }
  __device__ int at_once() const { return kThreads / lanes; }
};

// How the threads of a block go through some views at once, and whether 16 bytes at a time.
struct Walk {
  Rows rows;
  bool wide;
};

inline Walk walk_of(std::initializer_list<const View*> views, int element_size) {
  const View& first = **views.begin();
  const int values = 16 / element_size;
  const int64_t plane = int64_t(first.h) * first.w;
  bool dense = true, inside = true, aligned = true;
  for (const View* view : views) {
    if (!view->data) continue;
    dense = dense && view->stride_w == 1 && view->stride_h == view->w;
    inside = inside && view->stride_c == 1 && view->stride_w == view->c &&
             view->stride_h == int64_t(view->w) * view->c &&
             view->stride_n == int64_t(view->h) * view->w * view->c;
    aligned = aligned && reinterpret_cast<uintptr_t>(view->data) % 16 == 0 &&
              view->stride_n % values == 0 && (inside || view->stride_c % values == 0);
  }
  inside = inside && !dense;
  Walk walk{};
  const int64_t row = inside ? first.c : plane;
  STD_TORCH_CHECK(row < (int64_t(1) << 31), "an image of more than 2^31 pixels");
  walk.wide = aligned && (dense || inside) && row % values == 0;
  walk.rows.inside = inside;
  walk.rows.vectors = int(walk.wide ? row / values : row);
  walk.rows.lanes = std::min(walk.rows.vectors, inside ? 32 : Rows::kThreads);
  walk.rows.count = inside ? first.n * plane : int64_t(first.n) * first.c;
  return walk;
}

// Element of vector `i` of plane (n, c).
template <int Values>
__device__ __forceinline__ int64_t place_of(const View& view, int n, int c, int i) {
  if constexpr (Values > 1) return n * view.stride_n + c * view.stride_c + int64_t(i) * Values;
  return view.offset(n, c, i / view.w, i % view.w);
}

// Calls body with a value of the element type and, as a constant, how many of it to take at a time.
template <class F>
void for_values(Scalar dtype, bool wide, F body) {
  for_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    if (wide) {
      body(type, std::integral_constant<int, 16 / int(sizeof(T))>{});
    } else {
      body(type, std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace bunit::gpu
