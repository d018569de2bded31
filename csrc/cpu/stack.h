// The units of a stack as the operators take them, and what a level of one unit is.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <vector>

#include "kernels/calls.h"

namespace bunit {

constexpr int kMaxDepth = 8;

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
  int kinds = 0;
  std::vector<Unit> units;
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
  // Round robin (mirrors round_robin in bunit_kernels/shuffle.py).
  void find_places() {
    places.resize(size_t(channels[depth]));
    for (int64_t c = 0, place = 0; place < channels[depth]; ++c) {
      for (const Unit& unit : units) {
        if (c < unit.widths[depth]) places[size_t(unit.channels[depth] + c)] = place++;
      }
    }
  }

  Stack(const std::vector<int64_t>& rows, int64_t depth, bool conv) : depth(int(depth)) {
    STD_TORCH_CHECK(depth >= 1 && depth <= kMaxDepth, "units of 1 to ", kMaxDepth, " levels, got ",
                    depth);
    const size_t head = conv ? 3 : 1;
    const size_t step = head + size_t(depth) + 1;
    STD_TORCH_CHECK(!rows.empty() && rows.size() % step == 0, "rows of ", step,
                    " ints describe units, got ", rows.size(), " ints");
    for (size_t i = 0; i < rows.size(); i += step) {
      Unit unit{};
      unit.kernel = conv ? int(rows[i + 1]) : 1;
      unit.pad = conv ? int(rows[i + 2]) : 0;
      STD_TORCH_CHECK(rows[i] >= 1 && unit.kernel >= 1 && unit.pad >= 0, "a row has count ",
                      rows[i], ", kernel ", unit.kernel, ", pad ", unit.pad);
      for (int64_t l = 0; l <= depth; ++l) {
        unit.widths[l] = int(rows[i + head + size_t(l)]);
        STD_TORCH_CHECK(unit.widths[l] >= 1, "a unit has width ", unit.widths[l]);
      }
      unit.kind = find_kind(unit);
      for (int64_t n = 0; n < rows[i]; ++n) append(unit);
    }
  }

  int find_kind(const Unit& unit) {
    for (const Unit& other : units) {
      bool same = other.kernel == unit.kernel && other.pad == unit.pad;
      for (int l = 0; l <= depth; ++l) same = same && other.widths[l] == unit.widths[l];
      if (same) return other.kind;
    }
    return kinds++;
  }

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

// Output size of one level along one axis (mirrors conv_size in bunit_kernels/ops/_shapes.py).
inline int64_t conv_size(int64_t size, int64_t k, int64_t pad, int64_t stride, int64_t dilation) {
  return (size + 2 * pad - dilation * (k - 1) - 1) / stride + 1;
}

}  // namespace bunit
