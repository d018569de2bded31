// Every operator's schema. Kernels register in csrc/cpu and csrc/cuda; fake kernels, autograd and
// FLOP formulas in bunit_kernels/ops.
//
// Shapes: x [N, C, H, W] or [..., C]; a level's weight packed as bunit_kernels/layout.py says.
// `units` describes the stack as rows of ints, one row a run of equal neighbouring units:
//   conv    (count, k, pad, c0, ..., cL)
//   linear  (count, c0, ..., cL)
// where L is 1 for level operators and the number of weights for whole-unit operators.
// With `shuffle` the output, and what has its channels (residual, gradient, the last of pre_norms),
// has them round robin (bunit_kernels/shuffle.py); the CPU's kernels alone write it so.
// `biases` is empty or one tensor a level. `stats` is float32 (float64 for float64 inputs),
// [3, sum of all levels' channels]: batch mean, 1 / sqrt(var + eps), unbiased batch variance;
// `grad_affine`, of the same dtype, [2, the same]: the gradients of all gammas and of all betas.

#include <torch/csrc/stable/library.h>

// Tests define the same operators once more, for the kernels on their emulation of CUDA.
#ifndef BUNIT_NAMESPACE
#define BUNIT_NAMESPACE bunit_kernels
#endif
// A macro between, so that BUNIT_NAMESPACE is its value and not its name.
#define BUNIT_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)

BUNIT_LIBRARY(BUNIT_NAMESPACE, m) {
  // One level of all units.
  m.def(
      "stacked_linear(Tensor x, Tensor weight, Tensor? bias, int[] units, str activation) -> "
      "Tensor");
  m.def("stacked_linear_grad_input(Tensor grad, Tensor weight, int[] units) -> Tensor");
  m.def(
      "stacked_linear_grad_weight(Tensor grad, Tensor x, int[] weight_shape, int[] units) -> "
      "(Tensor, Tensor)");
  m.def(
      "stacked_conv2d(Tensor x, Tensor weight, Tensor? bias, int[] units, int stride, "
      "int dilation, str activation) -> Tensor");
  m.def(
      "stacked_conv2d_grad_input(Tensor grad, Tensor weight, SymInt[] input_size, int[] units, "
      "int stride, int dilation) -> Tensor");
  m.def(
      "stacked_conv2d_grad_weight(Tensor grad, Tensor x, int[] weight_shape, int[] units, "
      "int stride, int dilation) -> (Tensor, Tensor)");
  // The two above at once: gradients of input, weight and bias.
  m.def(
      "stacked_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int[] units, int stride, "
      "int dilation) -> (Tensor, Tensor, Tensor)");

  // All levels of all units, norms folded into weights and biases.
  m.def(
      "stacked_unit_linear(Tensor x, Tensor[] weights, Tensor[] biases, int[] units, "
      "str activation, str out_activation) -> Tensor");
  m.def(
      "stacked_unit_linear_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor[] biases, "
      "int[] units, str activation, str out_activation) -> (Tensor grad_x, Tensor[] grad_weights, "
      "Tensor[] grad_biases)");
  m.def(
      "stacked_unit_conv2d(Tensor x, Tensor[] weights, Tensor[] biases, Tensor? residual, "
      "int[] units, int stride, int dilation, bool shuffle, str activation, str out_activation, "
      "str residual_activation) -> Tensor");

  // All levels of all units, each followed by batch normalisation with batch statistics. With
  // `recompute` (CPU only) an empty tensor stands for the first level's output in pre_norms.
  m.def(
      "stacked_unit_conv2d_train(Tensor x, Tensor[] weights, Tensor[] gammas, Tensor[] betas, "
      "Tensor? residual, int[] units, int stride, int dilation, bool shuffle, float eps, "
      "bool recompute, str activation, str out_activation, str residual_activation) -> "
      "(Tensor out, Tensor[] pre_norms, Tensor stats)");
  m.def(
      "stacked_unit_conv2d_train_backward(Tensor grad, Tensor x, Tensor[] weights, "
      "Tensor[] gammas, Tensor[] betas, Tensor[] pre_norms, Tensor stats, int[] units, "
      "int stride, int dilation, bool shuffle, str activation, str out_activation) -> "
      "(Tensor grad_x, Tensor[] grad_weights, Tensor grad_affine)");
}
