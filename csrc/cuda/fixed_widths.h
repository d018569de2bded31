// The one list of what unit_forward has compile-time code for: units of two levels of 3x3 kernels
// whose levels are both listed. So the paper's pool, 1-2-1, 1-2-2, 1-2-3, 2-1-2, 2-1-1 and 3-2-1;
// the units of its ResNets, 2-4-2 and 2-4-4; 4-8-4 and 8-16-8.
#pragma once

#include "cuda/runs.h"

namespace bunit::gpu {

struct Widths {
  int in, out;
};
constexpr Widths kFirstLevels[] = {{1, 2}, {2, 1}, {3, 2}, {2, 4}, {4, 8}, {8, 16}};
constexpr Widths kSecondLevels[] = {{2, 1}, {2, 2}, {2, 3}, {1, 2}, {1, 1},
                                    {4, 2}, {4, 4}, {8, 4}, {16, 8}};
constexpr int kSecondCount = int(sizeof kSecondLevels / sizeof *kSecondLevels);

// Place in the first list times kSecondCount plus that in the second, or -1.
inline int fixed_code(const Kind& kind) {
  if (kind.kernel != 3) return -1;
  int first = 0;
  for (const Widths& a : kFirstLevels) {
    int second = 0;
    for (const Widths& b : kSecondLevels) {
      if (kind.widths[0] == a.in && kind.widths[1] == a.out && a.out == b.in &&
          kind.widths[2] == b.out) {
        return first * kSecondCount + second;
      }
      ++second;
    }
    ++first;
  }
  return -1;
}

// Channels that a thread makes at a time, and shared floats of one unit's level: weights by block
// of channels, input channel and tap, a multiple of four floats an input channel; then biases.
__host__ __device__ constexpr int fixed_channels(int out) { return out < 4 ? out : 4; }
__host__ __device__ constexpr int fixed_row(int out) {
  return (9 * fixed_channels(out) + 3) / 4 * 4;
}
__host__ __device__ constexpr int fixed_floats(int in, int out) {
  return out / fixed_channels(out) * in * fixed_row(out) + (out + 3) / 4 * 4;
}

}  // namespace bunit::gpu
