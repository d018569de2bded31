// The units of a stack as the operators take them, and what a level of one unit is.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <bit>
#include <cstdint>
#include <vector>

#include "kernels/calls.h"

namespace bunit {

// What the kernels take. Within these bounds nothing that they compute with ints is past 2^31.
constexpr int kMaxDepth = kLevels;
constexpr int64_t kMaxUnits = int64_t(1) << 20;
constexpr int64_t kMaxKernel = (1 << 15) - 1;  // and padding
constexpr int64_t kMaxInt = (int64_t(1) << 31) - 1;
constexpr int64_t kMaxElements = int64_t(1) << 62;  // of a level's weight

// One unit: its shape, and where its channels and weights begin in each level.
struct Unit {
  int kernel;
  int pad;
  int widths[kMaxDepth + 1];
  int64_t channels[kMaxDepth + 1];  // first channel of the unit among those between levels
  int64_t weights[kMaxDepth];       // first element of the unit's block in the packed weight
  int kind;                         // units of one kind have the same shape
};

// Units [first, last) of a stack.
struct UnitRange {
  int64_t first, last;
};

struct Stack {
  int depth = 0;
  std::vector<Unit> units;
  std::vector<int64_t> first_of_kind;  // unit
  std::vector<int64_t>
      places;  // of the last level's channels in a shuffled output; empty if none is
  int64_t channels[kMaxDepth + 1] = {};  // all units together
  int64_t weight_sizes[kMaxDepth] = {};

  // Rows (count, k, pad, c0, ..., cL).
  static Stack conv(const std::vector<int64_t>& rows, int64_t depth, bool shuffle = false) {
    Stack stack(rows, depth, true);
    if (shuffle) stack.find_places();
    return stack;
  }
  // Rows (count, c0, ..., cL): 1x1 convolutions without padding.
  static Stack linear(const std::vector<int64_t>& rows, int64_t depth) {
    return {rows, depth, false};
  }

  int64_t kinds() const { return int64_t(first_of_kind.size()); }

  UnitRange all() const { return {0, int64_t(units.size())}; }

  // The first channel, on side `side`, of unit `unit`, or the number of all where there is none.
  int64_t first_channel(int side, int64_t unit) const {
    return unit < int64_t(units.size()) ? units[size_t(unit)].channels[side] : channels[side];
  }
  // The same of elements of a level's weight.
  int64_t first_weight(int level, int64_t unit) const {
    return unit < int64_t(units.size()) ? units[size_t(unit)].weights[level] : weight_sizes[level];
  }

  // Where the layer's output has channel `c` of the units' outputs.
  int64_t place(int64_t c) const { return places.empty() ? c : places[size_t(c)]; }

  // A unit's channels after level `level`.
  OutChannels out_channels(const Unit& unit, int level) const {
    OutChannels out{unit.channels[level + 1], unit.widths[level + 1], nullptr, 1};
    if (places.empty() || level + 1 < depth) return out;
    out.places = places.data() + out.first;
    if (out.count > 1) out.step = out.places[1] - out.places[0];
    for (int64_t c = 1; c < out.count; ++c) {
      if (out.places[c] != out.places[0] + c * out.step) out.step = 0;
    }
    return out;
  }

 private:
  // Round robin: all units' first channels, all units' second ones, and so on.
  void find_places() {
    places.resize(size_t(channels[depth]));
    std::vector<const Unit*> left;  // with channels yet to be placed
    for (const Unit& unit : units) left.push_back(&unit);
    for (int64_t c = 0, place = 0; !left.empty(); ++c) {
      std::erase_if(left, [&](const Unit* unit) { return c >= unit->widths[depth]; });
      for (const Unit* unit : left) places[size_t(unit->channels[depth] + c)] = place++;
    }
  }

  Stack(const std::vector<int64_t>& rows, int64_t levels, bool conv) {
    STD_TORCH_CHECK(levels >= 1 && levels <= kMaxDepth, "weights: expected 1 to ", kMaxDepth,
                    " tensors, one a level, got ", levels);
    depth = int(levels);
    const size_t head = conv ? 3 : 1;
    const size_t step = head + size_t(depth) + 1;
    STD_TORCH_CHECK(!rows.empty() && rows.size() % step == 0, "units: expected rows of ", step,
                    " ints (count, ", conv ? "kernel, padding, " : "", depth + 1, " widths) for ",
                    depth, " levels, got ", rows.size(), " ints");
    KindTable table(rows.size() / step);
    for (size_t i = 0; i < rows.size(); i += step) {
      Unit unit = checked_unit(rows, i, conv);
      unit.kind = table.find(unit, *this);
      if (unit.kind == kinds()) first_of_kind.push_back(int64_t(units.size()));
      for (int64_t n = 0; n < rows[i]; ++n) append(unit);
    }
  }

  // The unit of the row at `i`, which together with the rows before is within the bounds.
  Unit checked_unit(const std::vector<int64_t>& rows, size_t i, bool conv) const {
    const int64_t count = rows[i], kernel = conv ? rows[i + 1] : 1, pad = conv ? rows[i + 2] : 0;
    STD_TORCH_CHECK(count >= 1 && count <= kMaxUnits - int64_t(units.size()),
                    "units: expected a count of at least 1 and at most ", kMaxUnits,
                    " units together, got a row of ", count);
    STD_TORCH_CHECK(kernel >= 1 && kernel <= kMaxKernel, "units: expected a kernel of 1 to ",
                    kMaxKernel, ", got ", kernel);
    STD_TORCH_CHECK(pad >= 0 && pad <= kMaxKernel, "units: expected a padding of 0 to ", kMaxKernel,
                    ", got ", pad);
    Unit unit{};
    unit.kernel = int(kernel);
    unit.pad = int(pad);
    const int64_t area = kernel * kernel;
    for (int l = 0; l <= depth; ++l) {
      const int64_t width = rows[i + (conv ? 3 : 1) + size_t(l)];
      STD_TORCH_CHECK(width >= 1 && width <= kMaxInt, "units: expected widths of 1 to ", kMaxInt,
                      ", got ", width);
      STD_TORCH_CHECK(width * area <= kMaxInt && channels[l] + count * width <= kMaxInt,
                      "units: more than ", kMaxInt,
                      " channels on a side, or taps of a channel, in "
                      "a row of count ",
                      count, ", kernel ", kernel, ", width ", width);
      unit.widths[l] = int(width);
      if (l == 0) continue;
      const int64_t block = unit.widths[l - 1] * area * width;
      STD_TORCH_CHECK(block <= (kMaxElements - weight_sizes[l - 1]) / count,
                      "units: the weight of level ", l, " has more than 2^62 elements");
    }
    return unit;
  }

  // Kinds by their shape, hashed: a layer may have as many as it has rows.
  class KindTable {
   public:
    explicit KindTable(size_t rows) : slots_(std::bit_ceil(2 * rows), -1) {}

    // The kind of a unit, or a new one.
    int find(const Unit& unit, const Stack& stack) {
      uint64_t hash = uint64_t(unit.kernel) * 31 + uint64_t(unit.pad);
      for (int l = 0; l <= stack.depth; ++l) {
        hash = (hash ^ uint64_t(unit.widths[l])) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
      }
      for (size_t at = hash;; ++at) {
        int& kind = slots_[at & (slots_.size() - 1)];
        if (kind < 0) return kind = int(stack.kinds());
        if (same_shape(unit, stack.units[size_t(stack.first_of_kind[size_t(kind)])], stack.depth)) {
          return kind;
        }
      }
    }

   private:
    static bool same_shape(const Unit& a, const Unit& b, int depth) {
      bool same = a.kernel == b.kernel && a.pad == b.pad;
      for (int l = 0; l <= depth; ++l) same = same && a.widths[l] == b.widths[l];
      return same;
    }

    std::vector<int> slots_;
  };

  void append(Unit unit) {
    for (int l = 0; l <= depth; ++l) {
      unit.channels[l] = channels[l];
      channels[l] += unit.widths[l];
    }
    for (int l = 0; l < depth; ++l) {
      unit.weights[l] = weight_sizes[l];
      weight_sizes[l] += int64_t(unit.widths[l]) * unit.widths[l + 1] * unit.kernel * unit.kernel;
    }
    units.push_back(unit);
  }
};

}  // namespace bunit
