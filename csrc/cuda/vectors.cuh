// Several neighbouring elements of global memory at a time, read by the way for what a kernel does
// not write. Addresses are aligned to all of them.
#pragma once

#include <cstring>

#include "cuda/values.cuh"

namespace bunit::gpu {

template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
template <class T, int V>
using WordOf = typename Word<V* int(sizeof(T))>::type;

template <class T, int V>
__device__ __forceinline__ void read_values(const T* from, float (&to)[V]) {
  const auto word = __ldg(reinterpret_cast<const WordOf<T, V>*>(from));
  T values[V];
  memcpy(&values, &word, sizeof word);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = to_float(values[i]);
}

template <class T, int V>
__device__ __forceinline__ void write_values(T* to, const float (&from)[V]) {
  T values[V];
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = from_float<T>(from[i]);
  WordOf<T, V> word;
  memcpy(&word, &values, sizeof word);
  *reinterpret_cast<WordOf<T, V>*>(to) = word;
}

}  // namespace bunit::gpu
