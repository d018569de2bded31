// A layer's units and the work lists made of them, kept from call to call: of a hybrid layer of 256
// units they take 20 microseconds to build, and a look-up less than two.
#pragma once

#include <memory>
#include <vector>

#include "cuda/bounded_cache.h"
#include "cuda/runs.h"

namespace bunit::gpu {

class Layer {
 public:
  explicit Layer(Stack stack);

  const Stack stack;
  const int64_t number;  // no other layer has or had it

  static constexpr int kAll = 1 << 30;
  // The work list of one level, of a kernel whose block takes so many channels of a unit's input
  // and output.
  std::shared_ptr<const WorkList> level(int level, int ins = kAll, int outs = kAll) const;

 private:
  struct Key {
    int level, ins, outs;
    bool operator==(const Key&) const = default;
  };
  // Forward, gradient of the input and gradient of the weight of every level.
  mutable BoundedCache<Key, WorkList, 3 * kMaxDepth> levels_;
};

// `units` as the operators take them (cpu/stack.h).
std::shared_ptr<const Layer> conv_layer(const std::vector<int64_t>& units, int64_t depth);
std::shared_ptr<const Layer> linear_layer(const std::vector<int64_t>& units, int64_t depth);

}  // namespace bunit::gpu
