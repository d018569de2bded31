// Everything about a forward pass that does not depend on the pixels: buffers, tap offsets, and
// weights in the order in which the kernels read them.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "parts.h"
#include "stack.h"
#include "tensors.h"

namespace bunit {

struct ConvOptions {
  int64_t stride = 1, dilation = 1;
  Activation hidden = Activation::identity;
  Activation out = Activation::identity;
  Activation after_residual = Activation::identity;
  Pass pass = Pass::forward;
};

// Of units of one level or more.
class ForwardPlan {
 public:
  // For inputs like `x`, which needs no data. `weights` and `biases` (empty, or one a level) are
  // the operators' tensors.
  ForwardPlan(const Stack& stack, const Image& x, const std::vector<Tensor>& weights,
              const std::vector<Tensor>& biases, const ConvOptions& options);

  // How many neighbouring units an item of work takes, for outputs that are interleaved or not;
  // `run` takes as many, or a multiple, or all.
  int64_t group(const Image& x, bool interleaved) const { return group_of(x, interleaved).units; }

  // Fills the units' part of y, segment by segment. `residual` may hold no data. With `in_norm` the
  // input is normalised and activated as it is loaded; with `moments`, for which the units are
  // all, those of the output are added up, an entry a channel, and y may hold no data.
  void run(const UnitRange& units, const Image& x, const Image& y, const Image& residual,
           const Norm& in_norm, Activation in_activation, std::vector<Moments>* moments) const;

 private:
  // The plan of one part of the batch.
  struct PartPlan {
    Part part;
    std::vector<Kind> kinds;
    std::vector<PackedUnit> units;
    int64_t scratch_bytes = 0;
  };

  // Units of an item of work, and the channels that these have at most.
  struct Group {
    int64_t units, ins, outs;
  };

  static constexpr int64_t kSegmentPixels = 256;  // not worth splitting below

  Group make_group(bool interleaved) const;
  const Group& group_of(const Image& x, bool interleaved) const;

  // In forward_kinds.cpp.
  void make_kind(const Unit& unit, const Image& x, PartPlan& plan);
  int64_t squares_of_row(const Unit& unit, const Image& x) const;
  void set_squares_step(Kind& kind) const;
  void set_step(Kind& kind, int64_t in_w, int64_t lanes) const;

  template <class T>
  void pack(const std::vector<Tensor>& weights, const std::vector<Tensor>& biases);
  int64_t stage_bytes(const ForwardCall& call, const Group& group, int64_t segments) const;
  void run_part(const UnitRange& units, const PartPlan& plan, ForwardCall call,
                std::vector<Moments>* moments) const;

  const Stack& stack_;
  ConvOptions options_;
  Scalar dtype_;
  int64_t out_h_ = 0, out_w_ = 0, reach_ = 0;
  Group apart_, interleaved_;  // for images neither of which is interleaved, and for others
  std::vector<PartPlan> plans_;
  std::deque<std::vector<int64_t>> offsets_;
  std::vector<double> packed_;  // as storage: floats or doubles
};

}  // namespace bunit
