// Everything about linear units that does not depend on the rows: how the work is split, and
// parameters in the type that is computed in.
#pragma once

#include <vector>

#include "pack.h"
#include "stack.h"
#include "tensors.h"

namespace bunit {

class LinearPlan {
 public:
  // For rows like `x`, which needs no data. `weights` and `biases` (empty, or one a level) are the
  // operators' tensors.
  LinearPlan(const Stack& stack, const Image& x, const std::vector<Tensor>& weights,
             const std::vector<Tensor>& biases, Activation hidden, Activation out);

  void forward(const Image& x, const Image& y);
  // Fills `grad_x` and the gradients of weights and biases.
  void backward(const Image& x, const Image& grad, const Image& grad_x,
                std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases);

 private:
  // Elements of scratch memory: for each row that is worked on at a time, and whatever their
  // number.
  struct Memory {
    int64_t row, fixed;
  };

  void split(const Stack& stack);
  Memory planes_memory(const Stack& stack) const;
  Memory wide_memory(const Stack& stack, int64_t lanes) const;
  template <class T>
  void sum_rows(std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases);
  void run();

  LinearCall call_{};
  std::vector<LinearUnit> units_;
  std::vector<Tensor> held_;
  bool wide_ = false;  // rows as they lie (linear_wide.h), or planes (linear.h)
  int64_t group_ = 1, groups_ = 1, parts_ = 1, scratch_bytes_ = 0;
};

}  // namespace bunit
