#include "cuda/runs.h"

#include <algorithm>

namespace bunit::gpu {
namespace {

struct Piece {
  const Unit* first;
  int units, kind;  // of all kinds
};

// Equal neighbouring units, as many as one run may hold.
std::vector<Piece> pieces_of(const Stack& stack) {
  std::vector<Piece> pieces;
  for (const Unit& unit : stack.units) {
    const bool more = !pieces.empty() && pieces.back().kind == unit.kind &&
                      pieces.back().units < Runs::kMostUnits;
    if (more) {
      ++pieces.back().units;
    } else {
      pieces.push_back({&unit, 1, unit.kind});
    }
  }
  return pieces;
}

Runs::Mark mark_of(const Unit& unit, int item, int level, int depth) {
  Runs::Mark mark{};
  mark.item = item;
  for (int l = 0; l <= depth; ++l) mark.channels[l] = int(unit.channels[level + l]);
  for (int l = 0; l < depth; ++l) {
    const int64_t begins = unit.weights[level + l];
    STD_TORCH_CHECK(begins < (int64_t(1) << 31), "weights past 2^31 elements");
    mark.weights[l] = int(begins);
  }
  return mark;
}

Kind kind_of(const Unit& unit, int level, int depth) {
  const auto narrow = [](int n) {
    STD_TORCH_CHECK(n < (1 << 15), "a width, kernel or pad of ", n, " is too large");
    return short(n);
  };
  Kind kind{};
  kind.kernel = narrow(unit.kernel);
  kind.pad = narrow(unit.pad);
  for (int l = 0; l <= depth; ++l) kind.widths[l] = narrow(unit.widths[level + l]);
  kind.group = 1;
  kind.code = -1;
  kind.items = 1;
  return kind;
}

}  // namespace

WorkList work_list(const Stack& stack, int level, int depth, const Prepare& prepare) {
  const std::vector<Piece> pieces = pieces_of(stack);
  WorkList list;
  list.kinds.resize(size_t(stack.kinds()));
  list.units.resize(size_t(stack.kinds()));
  std::vector<int> longest(size_t(stack.kinds()));
  for (const Piece& piece : pieces) {
    const size_t k = size_t(piece.kind);
    list.kinds[k] = kind_of(*piece.first, level, depth);
    list.units[k] += piece.units;
    longest[k] = std::max(longest[k], piece.units);
  }
  for (size_t k = 0; k < list.kinds.size(); ++k) prepare(list.kinds[k], longest[k]);

  std::vector<int> places(list.kinds.size(), -1);  // of kinds in the last launch's table
  std::vector<int> placed;                         // kinds that are in it
  for (const Piece& piece : pieces) {
    int& place = places[size_t(piece.kind)];
    if (list.launches.empty() || list.launches.back().count == Runs::kMaxRuns ||
        (place < 0 && placed.size() == Runs::kMaxKinds)) {
      list.launches.push_back({});
      for (int kind : placed) places[size_t(kind)] = -1;
      placed.clear();
    }
    Runs& runs = list.launches.back();
    if (place < 0) {
      place = int(placed.size());
      placed.push_back(piece.kind);
      runs.kinds[place] = list.kinds[size_t(piece.kind)];
    }
    if (runs.count % Runs::kStep == 0) {
      runs.marks[runs.count / Runs::kStep] = mark_of(*piece.first, runs.items, level, depth);
    }
    runs.units[runs.count++] = {(unsigned char)(place), (unsigned char)(piece.units)};
    const int items = runs.kinds[place].items_of(piece.units);
    runs.items += items;
    list.items += items;
  }
  return list;
}

}  // namespace bunit::gpu
