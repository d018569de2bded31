#include "cuda/layer.h"

#include <atomic>
#include <utility>

namespace bunit::gpu {
namespace {

struct Lookup {
  const std::vector<int64_t>& units;
  int64_t depth;
};
struct Key {
  explicit Key(const Lookup& l) : units(l.units), depth(l.depth) {}
  std::vector<int64_t> units;
  int64_t depth;
};
bool operator==(const Key& a, const Lookup& b) { return a.depth == b.depth && a.units == b.units; }

// More layers than most networks have. One of 256 runs holds 0.1 MB.
using Layers = BoundedCache<Key, Layer, 128>;

int64_t next_number() {
  static std::atomic<int64_t> numbers{0};
  return ++numbers;
}

}  // namespace

Layer::Layer(Stack given) : stack(std::move(given)), number(next_number()) {}

std::shared_ptr<const WorkList> Layer::level(int level, int ins, int outs) const {
  const auto groups = [](int channels, int most) { return (channels - 1) / most + 1; };
  return levels_.get(Key{level, ins, outs}, [&] {
    return work_list(stack, level, 1, [&](Kind& kind, int) {
      kind.items = groups(kind.widths[0], ins) * groups(kind.widths[1], outs);
    });
  });
}

std::shared_ptr<const Layer> conv_layer(const std::vector<int64_t>& units, int64_t depth) {
  static Layers layers;
  return layers.get(Lookup{units, depth}, [&] { return Stack::conv(units, depth); });
}

std::shared_ptr<const Layer> linear_layer(const std::vector<int64_t>& units, int64_t depth) {
  static Layers layers;
  return layers.get(Lookup{units, depth}, [&] { return Stack::linear(units, depth); });
}

}  // namespace bunit::gpu
