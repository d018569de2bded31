// How a batch is split into images that are worked on one by one, and side by side.
#pragma once

#include <vector>

#include "winograd_weights.h"

namespace bunit {

// A run of images of a batch that are worked on alike: one by one, or `lanes` side by side.
struct Part {
  int64_t first, count, lanes;
};

// The widest rows, in pixels, on which images side by side are quicker than one by one.
//
// Stride 1, on a Zen 5 (16 lanes, one thread, N=128; in ms, images one by one / side by side,
// NCHW): forward of 2-4-2 at 8x8 11.4/5.5, at 16x16 11.5/11.6, at 28x28 (N=32) 3.8/4.4; forward and
// backward of a level 2-4 at 8x8 38/19, 16x16 37/32, 28x28 12.1/13.8, 32x32 56/72. The same order
// holds in channels_last. Training steps, on a Xeon of the Sapphire Rapids generation, two threads:
// 2-4-2 at 8x8 116/36, 16x16 84/82, 4-8-4 at 28x28 (N=32) 61/69, 16-16-16 77/86; in channels_last
// 4-8-4 112/100, 2-4-2 at 16x16 155/158.
//
// Longer strides pick single pixels out of rows, where a pixel of all images is a vector whatever
// the stride. Stride 2, on a Xeon of the Sapphire Rapids generation (the same; first NCHW, then
// channels_last): 2-4-4 at 32x32 forward 31/22, 37/41, forward and backward of its first level
// 93/59, 130/121, training step 193/126, 295/245; at 56x56 (N=32) forward 8.4/7.6, 9.4/19, level
// 28/23, 42/50, training step 75/54, 103/113; at 112x112 (N=16) level 56/62, training 105/119.
//
// Backward by rows without padding (RowsBackward), training steps of 2-4-2 at 16x16 on a Zen 4, two
// threads: 45/53 ms; of the same in bfloat16, which is copied, 38/35, of 16-16-16 (by Winograd)
// 87/80, of 5x5 kernels 60/43.
inline int64_t widest_side_by_side(int64_t lanes, int64_t stride, bool interleaved, bool by_rows,
                                   Pass pass) {
  if (stride > 1 && !interleaved) return 4 * lanes;
  if (stride > 1) return pass == Pass::forward ? 2 * lanes - 1 : 2 * lanes;
  if (pass == Pass::forward || by_rows) return lanes - 1;
  return pass == Pass::with_norms && interleaved ? 2 * lanes - 1 : lanes;
}

// Whether images are of the compute type and all levels such that rows serve without padding.
inline bool takes_plain_rows(const Stack& stack, const Image& x, Pass pass) {
  bool takes = kernels().loads_lanes && element_size(x.dtype) == compute_size(x.dtype);
  for (const Unit& unit : stack.units) {
    takes = takes && unit.kernel == 3 && unit.pad == 1;
    for (int l = 0; l < stack.depth; ++l) {
      takes = takes && !takes_winograd(unit.widths[l], unit.widths[l + 1], x.h * x.w, pass);
    }
  }
  return takes;
}

// A batch as whole vectors of images, where rows are short for vectors of pixels, and the rest.
inline std::vector<Part> parts_of(const Stack& stack, const Image& x, int64_t stride, Pass pass) {
  const int64_t lanes = kernels().vector_bytes / compute_size(x.dtype);
  const bool by_rows = takes_plain_rows(stack, x, pass);
  bool worth = x.w <= widest_side_by_side(lanes, stride, x.is_interleaved(), by_rows, pass);
  bool pointwise = true;  // rows lie end to end anyway
  for (const Unit& unit : stack.units) pointwise = pointwise && unit.kernel == 1 && unit.pad == 0;
  worth = worth && !pointwise;
  const int64_t whole = worth ? x.n / lanes * lanes : 0;
  std::vector<Part> parts;
  if (whole > 0) parts.push_back({0, whole, lanes});
  if (whole < x.n || x.n == 0) parts.push_back({whole, x.n - whole, 1});
  return parts;
}

}  // namespace bunit
