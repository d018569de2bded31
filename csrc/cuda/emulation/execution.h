// A launch, its blocks and threads, and what threads of a block do together (execution.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>

#include "runtime.h"
#include "vector_types.h"

constexpr int warpSize = 32;

namespace bunit::emulation {

// What a thread knows about itself.
struct Place {
  uint3 thread{}, block{};
  dim3 block_size, grid_size;
};

// The place of the thread that runs now, as a pointer that moves with it.
extern const Place* place;

using Where = std::source_location;

// What the lanes of a mask do together.
enum class Collective { sync, shuffle, ballot, all, any, add };

void* dynamic_shared();
void barrier(const Where& where);
// Barrier and number of threads whose `predicate` holds.
int counting_barrier(bool predicate, const Where& where);
// `value` of lane `source` for a shuffle; bits, truth or sum for the others.
uint64_t collective(Collective kind, unsigned mask, uint64_t value, int source, const Where& where);

void run(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
         const std::function<void()>& body);

// Parameters are copied once, at the launch, as on the device.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
  const std::tuple<std::decay_t<Parameters>...> copies(std::forward<Arguments>(arguments)...);
  run(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [&] { std::apply(kernel, copies); });
}

template <typename T>
T shuffle(unsigned mask, T value, int source, const Where& where) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = collective(Collective::shuffle, mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int linear_thread() {
  const Place& p = *place;
  return int((p.thread.z * p.block_size.y + p.thread.y) * p.block_size.x + p.thread.x);
}
inline int lane() { return linear_thread() % warpSize; }

}  // namespace bunit::emulation

#define threadIdx (::bunit::emulation::place->thread)
#define blockIdx (::bunit::emulation::place->block)
#define blockDim (::bunit::emulation::place->block_size)
#define gridDim (::bunit::emulation::place->grid_size)

#define BUNIT_WHERE const ::bunit::emulation::Where& where = ::bunit::emulation::Where::current()

inline void __syncthreads(BUNIT_WHERE) { ::bunit::emulation::barrier(where); }
inline int __syncthreads_count(int predicate, BUNIT_WHERE) {
  return ::bunit::emulation::counting_barrier(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, BUNIT_WHERE) {
  return __syncthreads_count(predicate, where) > 0;
}
inline int __syncthreads_and(int predicate, BUNIT_WHERE) {
  return __syncthreads_count(predicate == 0, where) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, BUNIT_WHERE) {
  ::bunit::emulation::collective(::bunit::emulation::Collective::sync, mask, 0, 0, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, BUNIT_WHERE) {
  using namespace ::bunit::emulation;
  return unsigned(collective(Collective::ballot, mask, predicate != 0, 0, where));
}
inline int __all_sync(unsigned mask, int predicate, BUNIT_WHERE) {
  using namespace ::bunit::emulation;
  return int(collective(Collective::all, mask, predicate != 0, 0, where));
}
inline int __any_sync(unsigned mask, int predicate, BUNIT_WHERE) {
  using namespace ::bunit::emulation;
  return int(collective(Collective::any, mask, predicate != 0, 0, where));
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, BUNIT_WHERE) {
  using namespace ::bunit::emulation;
  return unsigned(collective(Collective::add, mask, value, 0, where));
}

// Groups of `width` lanes shuffle among themselves; what would come from outside one is one's own.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, BUNIT_WHERE) {
  const int first = ::bunit::emulation::lane() & ~(width - 1);
  return ::bunit::emulation::shuffle(mask, value, first + (source & (width - 1)), where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, BUNIT_WHERE) {
  const int lane = ::bunit::emulation::lane(), source = lane ^ bits;
  const bool inside = source <= (lane | (width - 1));
  return ::bunit::emulation::shuffle(mask, value, inside ? source : lane, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, BUNIT_WHERE) {
  const int lane = ::bunit::emulation::lane(), source = lane + int(delta);
  const bool inside = source <= (lane | (width - 1));
  return ::bunit::emulation::shuffle(mask, value, inside ? source : lane, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, BUNIT_WHERE) {
  const int lane = ::bunit::emulation::lane(), source = lane - int(delta);
  const bool inside = source >= (lane & ~(width - 1));
  return ::bunit::emulation::shuffle(mask, value, inside ? source : lane, where);
}
#undef BUNIT_WHERE
