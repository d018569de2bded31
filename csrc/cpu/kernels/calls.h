// What the operators hand to the kernels: plain structs, no code, so that each instruction set's
// translation unit shares nothing with the others that a linker could mix up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bunit {

enum class Activation : int { identity, relu, relu6, leaky_relu, gelu, silu, hardswish };

enum class Scalar : int { float32, float64, bfloat16, float16 };

// An image tensor; strides in elements. Compute type T is double for float64 and else float.
struct Image {
  const void* data = nullptr;
  Scalar dtype = Scalar::float32;
  int64_t n = 0, c = 0, h = 0, w = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

// Normalisation of one level's channels: (z - mean) * scale + shift. Arrays of T, a value a channel.
struct Norm {
  const void* mean = nullptr;
  const void* scale = nullptr;
  const void* shift = nullptr;
};

// One level of one kind of unit: `buffers` are planes of `row` elements a row that hold the level's
// padded input, split by stride into phases; a kernel tap is an offset into them.
struct Level {
  int c_in, c_out;
  int taps;               // c_in * k * k
  int pad;                // of this level's input
  int reach;              // rows of input below an output row's own: (k - 1) * dilation / stride
  int phases;             // stride phases an axis that taps use
  int64_t out_h, out_w;
  int64_t rows;           // capacity of a plane
  int64_t plane;          // elements from one plane to the next
  const int64_t* offsets; // [taps]
};

constexpr int kLevels = 8;

struct Kind {
  int kernel;
  int64_t row;            // elements a row in every buffer of the unit
  int64_t step;           // output rows made at a time
  Level levels[kLevels];
  int64_t out_plane;      // plane of the finished rows before they are written
  int64_t scratch;        // elements of T
};

struct PackedUnit {
  const Kind* kind;
  int64_t in_channel, out_channel;
  const void* weights[kLevels];  // T, [blocks of output channels][taps][channels of the block]
  const void* biases[kLevels];   // T, or null
};

// Mean and sum of squared distances from it of `count` values.
struct Moments {
  double count, mean, m2;
};

struct ForwardCall {
  Image x, y, residual;          // residual.data may be null
  int depth;
  int stride, dilation;
  Activation hidden, out, after_residual;
  const PackedUnit* units;
  Norm in_norm;                  // applied to the input as it is loaded, where mean is set
  Activation in_activation;
  Moments* moments;              // null, or [n][segment][c] of the output, before `out`
  int64_t segments;
  bool stream;                   // write around the caches
};

// Backward of one level: from the gradient of the level's convolution output, or from the gradient
// after its norm and activation where `out_norm` is set.
struct BackwardUnit {
  int c_in, c_out, kernel, pad;
  int64_t in_channel, out_channel;
  int64_t row;                   // elements a row of every buffer
  int64_t reach;                 // (k - 1) * dilation / stride
  int64_t weight;                // first element in the packed weight
  const int64_t* taps;           // [c_in * k * k] offsets of the input planes, for grad_weight
  const void* weights;           // T, per phase [blocks of input channels][taps][block]
  const int64_t* phase_taps;     // per phase: number of taps, then that many offsets
  int64_t scratch;
};

struct BackwardCall {
  Image grad, x, z;              // z: the level's own output before its norm, with out_norm
  Image grad_x;                  // data null: not wanted
  int stride, dilation;
  const BackwardUnit* units;
  // d(loss)/dz = scale * (g - mean_g - zhat * mean_gz), g = grad * activation'(n), all by channel.
  Norm out_norm;                 // mean null: grad is the gradient of z itself
  const void* inv_std;           // T
  const void* mean_g;            // T
  const void* mean_gz;           // T
  Activation out_activation;     // identity where grad is already before it
  Norm in_norm;                  // of the level before, applied to x as it is loaded
  Activation in_activation;
  const void* in_inv_std;        // T
  double* in_sums;               // null, or [item n][segment][c_in of all units][2]: sums of g, g * zhat
  void* grad_weight;             // null, or T [n][segment][weights of all units]
  void* grad_bias;               // null, or T [n][segment][c_out of all units]
  int64_t weight_size;           // weights of all units
  int64_t segments;
};

}  // namespace bunit
