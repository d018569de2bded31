// What the operators hand to the kernels: plain structs, no code but what is always inlined, so
// that each instruction set's translation unit shares nothing with the others that a linker could
// mix up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bunit {

enum class Activation : int { identity, relu, relu6, leaky_relu, gelu, silu, hardswish };

enum class Scalar : int { float32, float64, bfloat16, float16 };

// An image tensor; strides in elements. Compute type T is double for float64 and else float.
//
// Small images are worked on a vector of them at a time, a lane an image (`lanes` below is then the
// length of a vector, and else 1): no lane is idle whatever the width, no load straddles cache
// lines, and both memory formats cost the same transposition.
struct Image {
  const void* data = nullptr;
  Scalar dtype = Scalar::float32;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
  int64_t lanes = 1;      // elements a pixel, next to each other: as many images
  int64_t ahead = 0;      // bytes from a pixel to one that will be read soon, if not 0
  bool shuffled = false;  // its channels are the units' output channels in shuffled order

  // Whether its channels lie next to each other, and so the pixels of one channel apart.
  [[gnu::always_inline]] inline bool is_interleaved() const {
    return stride_c == 1 && c > 1 && h * w > 1;
  }
};

// A unit's output channels: `count` of them, from `first` on in the units' order. Images that are
// shuffled have them at `places`, `step` apart if they are evenly so and `step` is not 0.
struct OutChannels {
  int64_t first, count;
  const int64_t* places;
  int64_t step;
};

// Elements between the planes that stand in for an image: planes of whole pages, one after the
// other, would evict one another from the first-level cache.
constexpr int64_t kPlaneGap = 16;

constexpr int64_t kLineBytes = 64;  // of the caches

// Input channels up to which squares (squares.h) keep all that is transformed of a row in
// registers; their weights lie accordingly.
constexpr int kSquareInputs = 4;

// Normalisation of one level's channels: (z - mean) * scale + shift. Arrays of T, a value a
// channel.
struct Norm {
  const void* mean = nullptr;
  const void* scale = nullptr;
  const void* shift = nullptr;
};

// One level of one kind of unit: `buffers` are planes of `row` elements a row that hold the level's
// padded input, split by stride into phases; a kernel tap is an offset into them. Sizes without
// another unit are in pixels.
struct Level {
  int c_in, c_out;
  int taps;       // c_in * k * k
  int pad;        // of this level's input
  int reach;      // rows of input below an output row's own: (k - 1) * dilation / stride
  int phases;     // stride phases an axis that taps use
  bool plain;     // 3x3, stride and dilation 1
  bool winograd;  // made in tiles of 2x2, whose rows begin at even ones
  bool by_rows;   // made by conv_rows
  bool pairs;     // by it in pairs of rows, the first of which are even
  int64_t out_h, out_w;
  int64_t rows;            // capacity of a plane
  int64_t plane;           // elements from one plane to the next
  const int64_t* offsets;  // [taps]
};

constexpr int kLevels = 8;

struct Kind {
  int64_t row;      // elements a row in every buffer of the unit
  int64_t step;     // output rows made at a time
  int64_t squares;  // in a row of planes of squares, or 0 where levels are made otherwise
  uint16_t has_left, has_right;  // of a vector of them, those that are not a row's first, or last
  Level levels[kLevels];
  int64_t out_plane;   // plane of the finished rows before they are written
  int64_t tiles_size;  // what Winograd works in
  int64_t scratch;     // elements of T, of all buffers
};

struct PackedUnit {
  const Kind* kind;
  int64_t in_channel;
  OutChannels out;
  // T, [blocks of output channels][taps][channels of the block], or as Winograd takes them.
  const void* weights[kLevels];
  const void* biases[kLevels];  // T, or null
};

// Mean and sum of squared distances from it of `count` values.
struct Moments {
  double count, mean, m2;
};

struct ForwardCall {
  Image x, y,
      residual;  // residual.data may be null, and y.data where moments are all that is asked
  int depth;
  int stride;
  int64_t lanes;  // images a work item
  Activation hidden, out, after_residual;
  const PackedUnit* units;
  Norm in_norm;  // applied to the input as it is loaded, where mean is set
  Activation in_activation;
  Moments* moments;  // null, or [item][segment][c] of the output, before `out`
  int64_t segments;
  bool around;        // write the output around the caches; its rows are aligned
  bool around_whole;  // the same where they are not, by units whose pixels are whole lines
};

// Backward of one level of one kind of unit.
struct BackwardKind {
  int c_in, c_out, taps, pad;
  int reach;      // (k - 1) * dilation / stride
  int phases;     // stride phases an axis that taps use
  bool plain;     // 3x3, stride and dilation 1
  bool wide;      // whose weight's gradient is made of pixels, not of planes
  bool winograd;  // made in tiles
  bool by_rows;   // worked on in rows without padding (RowsBackward)
  bool pairs;     // in pairs of rows, where conv_rows makes the input's gradient
  int64_t row;    // elements a row of every buffer
  int64_t grad_plane, x_plane, out_plane;
  int64_t tiles_size;        // elements that Winograd works in
  int64_t tiles_at_once;     // vectors of them, in the weight's gradient
  const int64_t* x_offsets;  // [taps]: where a tap finds its input pixel
  // For each phase (py, px) of input pixels, stride * stride of them: how many (output channel,
  // tap) reach it, and where they find the gradient.
  const int64_t* phase_taps;
  const int64_t* grad_offsets;  // of all phases, one after the other
  const void* mask;             // all ones at output pixels, zero between rows
};

struct BackwardUnit {
  const BackwardKind* kind;
  int64_t in_channel;
  OutChannels out;
  int64_t weight;       // first element in the packed weight
  const void* weights;  // T, per phase [blocks of input channels][taps][block]; or for Winograd
};

// From the gradient of a level's convolution output or, with `out_norm`, from that after its norm:
// d/dz = scale * (g - mean_g - zhat * mean_gz), where g = grad * activation'(n),
// zhat = (z - mean) * inv_std and n = (z - mean) * scale + shift. Arrays of T, a value a channel.
struct BackwardCall {
  Image grad, x, z;  // z: the level's own output before its norm, with out_norm
  Image grad_x;      // no data: not wanted
  int stride;
  int64_t lanes;  // images a work item
  const BackwardUnit* units;
  Norm out_norm;
  Activation out_activation;  // identity where grad is already the one before it
  const void* inv_std;
  const void* mean_g;
  const void* mean_gz;
  // Norm and activation of the level before: applied to x as it is loaded; grad_x is then the
  // gradient before them, in the sense of g above, and in_sums its sums.
  Norm in_norm;
  Activation in_activation;
  const void* in_inv_std;
  double* in_sums;    // [block][segment][c_in][2]: sums of g, g * zhat; or null
  void* grad_weight;  // T [block][segment][weights], or null
  void* grad_bias;    // T [block][segment][c_out], or null
  int64_t sums_step, weight_step, bias_step;  // elements from a segment's to the next
  int64_t block;                              // times `lanes` images a block
  int64_t segments;                           // of the output's rows
  int64_t sums_size;  // elements in which a unit that is worked on by rows keeps sums
  bool around;        // write grad_x around the caches where it is turned about
};

// y = after_residual(activation(norm(z)) + residual), pixels of z, y and residual dense.
struct AffineCall {
  Image z, y, residual;
  Norm norm;
  Activation activation, after_residual;
  bool around;  // write y around the caches
};

// Sums of g and g * zhat (see BackwardCall) over one image: [n][c][2].
struct ReduceCall {
  Image grad, z;
  Norm norm;
  const void* inv_std;
  Activation activation;
  double* sums;
};

// One linear unit: parameters lie as the operators take them.
struct LinearUnit {
  int widths[kLevels + 1];
  int64_t in_channel, out_channel;
  int64_t weights[kLevels], biases[kLevels];  // first elements of the unit in those of its levels
};

// Rows of features through linear units, [rows, C] seen as an image [1, C, rows, 1], and back.
struct LinearCall {
  Image x;
  Image y;       // the output, or its gradient
  Image grad_x;  // no data: forward
  int depth;
  Activation hidden, out;
  const LinearUnit* units;
  const void* weights[kLevels];       // T, of all units
  const void* biases[kLevels];        // the same, or null
  int64_t in_channels, out_channels;  // of the units that an item takes, at most
  int64_t part;                       // rows an item takes
  int64_t block;                      // rows whose planes stay in the cache
  int64_t plane;                      // elements from one plane to the next: a block and more
  void* sums;                         // T [part][sums_size]: gradients of parameters
  int64_t sums_size;
  int64_t weight_sums[kLevels], bias_sums[kLevels];  // where a level's begin
};

}  // namespace bunit
