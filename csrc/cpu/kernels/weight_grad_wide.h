// The gradient of the weight of a wide unit.
//
// By planes (WeightGrad) each block of a few channels and taps ends with sums over lanes, which
// take a fifth of its time, and loads that shifted taps spread over two cache lines. Where a unit's
// channels fill vectors, the planes are turned once, to pixels of all channels, and the sums over
// pixels are products of registers (tiles.h).
#pragma once

#include "tiles.h"

namespace bunit::BUNIT_ISA {

// Planes as pixels of `pitch` elements each, the channels and zeros. Unlike from_planes, which ends
// with the last pixel and channel: both sides hold whole vectors, and none is a part.
template <class T>
void to_pixels(const T* planes, int64_t plane, int64_t channels, int64_t pixels, T* out,
               int64_t pitch) {
  constexpr int kN = kLanes<T>;
  for (int64_t p = 0; p < pixels; p += kN) {
    for (int64_t c = 0; c < pitch; c += kN) {
      Vec<T> block[kN];
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) {
        block[i] = c + i < channels ? load(planes + (c + i) * plane + p) : Vec<T>{};
      }
      transpose<T>(block);
#pragma GCC unroll 16
      for (int i = 0; i < kN; ++i) store(out + (p + i) * pitch + c, block[i]);
    }
  }
}

// sums[tap][c_out][c_in] += sum over pixels of grad * input, of `rows` rows of `width` pixels.
template <class T>
struct WideWeightGrad {
  const T* grad;    // planes, from the first row on
  const T* inputs;  // planes, from where the first tap finds the first pixel
  const BackwardKind& kind;
  int64_t rows, width;

  __attribute__((noinline)) void run(T* memory, T* sums) const {
    constexpr uintptr_t kAlign = sizeof(Vec<T>);
    const auto address = reinterpret_cast<uintptr_t>(memory);
    T* const x = memory + (kAlign - address % kAlign) % kAlign / sizeof(T);
    const int64_t x_pitch = whole_vectors<T>(kind.c_in), g_pitch = whole_vectors<T>(kind.c_out);
    T* const g = x + kind.x_plane * x_pitch;
    const int area = kind.taps / kind.c_in;
    const int64_t pixels = (rows - 1) * kind.row + width;
    to_pixels(inputs, kind.x_plane, kind.c_in, pixels + kind.x_offsets[area - 1], x, x_pitch);
    to_pixels(grad, kind.grad_plane, kind.c_out, pixels, g, g_pitch);
    for (int tap = 0; tap < area; ++tap, sums += kind.c_out * kind.c_in) {
      const T* from = x + kind.x_offsets[tap] * x_pitch;
      for_each_tile<T>(kind.c_out, kind.c_in,
                       [&]<int Rows, int Vectors>(int64_t c, int64_t t) BUNIT_ALWAYS {
                         Vec<T> acc[Rows][Vectors] = {};
                         for (int64_t r = 0; r < rows; ++r) {
                           add_products(g + r * kind.row * g_pitch + c, 1, g_pitch,
                                        from + r * kind.row * x_pitch + t, x_pitch, width, acc);
                         }
                         for (int m = 0; m < Rows; ++m) {
                           add_vectors<T>(acc[m], kind.c_in - t, sums + (c + m) * kind.c_in + t);
                         }
                       });
    }
  }

  // From [tap][c_out][c_in] to [c_out][c_in][tap], as weights are.
  static void turn(const BackwardKind& kind, T* memory, T* sums) {
    const int area = kind.taps / kind.c_in, channels = kind.c_out * kind.c_in;
    copy_row(sums, memory, int64_t(area) * channels);
    for (int i = 0; i < channels; ++i) {
      for (int tap = 0; tap < area; ++tap) *sums++ = memory[tap * channels + i];
    }
  }
};

}  // namespace bunit::BUNIT_ISA
