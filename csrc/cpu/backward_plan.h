// Everything about a level's backward pass that does not depend on the pixels.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "parts.h"
#include "stack.h"
#include "tensors.h"

namespace bunit {

// What the norm after a level, and that before it, add to its gradients; see BackwardCall.
struct BackwardNorms {
  Image z;  // the level's output before its norm
  Norm out;
  Activation out_activation = Activation::identity;
  const void* inv_std = nullptr;
  const void* mean_g = nullptr;
  const void* mean_gz = nullptr;
  Norm in;
  Activation in_activation = Activation::identity;
  const void* in_inv_std = nullptr;
};

class BackwardPlan {
 public:
  // Level `level` of `stack`, for inputs like `x` and output gradients like `grad`. `weight` is
  // read only where the gradient of the input is wanted.
  BackwardPlan(const Stack& stack, int level, const Image& x, const Image& grad,
               const Tensor* weight, int64_t stride, int64_t dilation, Pass pass = Pass::backward);

  // How many neighbouring units an item of work takes; `run` takes as many, or a multiple.
  int64_t group() const { return group_; }

  // `grad_x` may hold no data; `grad_weight` and `grad_bias` may be null, both or the bias alone,
  // and get the elements that are the units'. With `in_sums` the sums that the norm before the
  // level needs, two a channel of the units.
  void run(const UnitRange& units, const Image& x, const Image& grad, const Image& grad_x,
           const BackwardNorms& norms, Tensor* grad_weight, Tensor* grad_bias,
           std::vector<double>* in_sums) const;

 private:
  // The plan of one part of the batch: blocks of `block` times `lanes` images, `segments` of their
  // rows each.
  struct PartPlan {
    Part part;
    int64_t segments = 1, block = 1, blocks = 0, scratch_bytes = 0, sums_size = 0;
    int64_t rows = 0;  // of the output, at most in a segment
    std::vector<BackwardKind> kinds;
    std::vector<BackwardUnit> units;
    std::vector<double> packed;
  };

  void split(PartPlan& plan) const;
  void make_kind(const Unit& unit, int64_t dilation, Pass pass, PartPlan& plan);
  template <class T>
  void pack(const Tensor& weight, int64_t dilation, PartPlan& plan);
  int64_t stage_bytes(int64_t lanes, int64_t segments) const;
  template <class T>
  void run_typed(const UnitRange& units, const BackwardCall& whole, Tensor* grad_weight,
                 Tensor* grad_bias, std::vector<double>* in_sums) const;

  const Stack& stack_;
  int level_;
  int64_t stride_;
  Image x_, grad_;
  int64_t group_ = 1, group_in_ = 0, group_out_ = 0, reach_ = 0, pad_ = 0;
  std::vector<PartPlan> plans_;
  std::deque<std::vector<int64_t>> offsets_;
};

}  // namespace bunit
