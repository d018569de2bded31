// How whole-unit inference is launched: tiles, widths of loads and stores, one launch a work list.

#include "cuda/unit_forward.h"

#include <algorithm>

#include "cuda/unit_forward_launch.h"

namespace bunit::gpu {
namespace {

static_assert(sizeof(UnitForwardCall) + sizeof(Tiling) + sizeof(Runs) <= 4096);

// How many neighbours at once, of 4, 2 or 1, every multiple of it in a row (or, where channels lie
// next to each other, in the channels) can be read or written.
int vector_of(const View& v, int bytes) {
  const bool by_channel = v.stride_c == 1;
  const auto address = reinterpret_cast<uintptr_t>(v.data);
  if (!by_channel && v.stride_w != 1) return 1;
  for (const int together : {4, 2}) {
    const auto fits = [&](int64_t n) { return n % together == 0; };
    if (address % uintptr_t(together * bytes) == 0 && fits(v.stride_n) && fits(v.stride_h) &&
        fits(by_channel ? v.stride_w : v.stride_c) && (by_channel || fits(v.w))) {
      return together;
    }
  }
  return 1;
}

}  // namespace

bool unit_forward(const Layer& layer, const UnitForwardCall& call, const Context& on) {
  const bool staged = call.y.stride_c == 1 || !few_instructions(call.out) ||
                      (call.residual.data && !few_instructions(call.after_residual));
  const int bytes_of_value = element_size(on.dtype);
  const auto plan = unit_plan(layer, call, bytes_of_value, staged);
  if (!plan->fits) return false;
  Tiling t = plan->tiling;
  t.x_vector = vector_of(call.x, bytes_of_value);
  t.y_pairs = vector_of(call.y, bytes_of_value) > 1;
  t.residual_pairs = call.residual.data && call.residual.stride_c != 1 &&
                     vector_of(call.residual, bytes_of_value) > 1;
  const int64_t tiles = int64_t(t.tiles_y) * t.tiles_x * t.image_groups;
  // Two blocks for each that the processors hold at a time: few enough that packing weights is
  // little of their work, enough that uneven ones balance.
  const int64_t wanted = int64_t(processors()) * Tiling::kBlocks * 2;
  const size_t bytes = size_t(t.weights + t.first + t.second) * sizeof(float);
  for (const Runs& runs : plan->list.launches) {
    const int64_t blocks = std::clamp<int64_t>(ceil_div(wanted, runs.items), 1, tiles);
    STD_TORCH_CHECK(tiles < (int64_t(1) << 31) && blocks * runs.items < (int64_t(1) << 31),
                    "more than 2^31 tiles");
    for_dtype(on.dtype, [&](auto type) {
      launch_unit_forward<decltype(type)>(call, t, runs, unsigned(blocks * runs.items), bytes,
                                          on.stream);
    });
    check_launch("unit_forward");
  }
  return true;
}

}  // namespace bunit::gpu
