// Division by a number that many threads divide by many times.
#pragma once

#include <cstdint>

#include "cuda/portable.h"

namespace bunit::gpu {

// A multiplication for a division: exact where dividend times divisor is less than 2^32.
struct Divider {
  unsigned by, factor;  // ceil(2^32 / by), or 0 for 1

  Divider() = default;
  __host__ __device__ explicit Divider(int divisor)
      : by(unsigned(divisor)), factor(0xffffffffu / by + 1) {}
  __device__ int quotient(int n) const {
    return factor ? int(uint64_t(unsigned(n)) * factor >> 32) : n;
  }
  // Makes n the quotient; the remainder.
  __device__ int split(int& n) const {
    const int all = n;
    n = quotient(n);
    return all - n * int(by);
  }
};

}  // namespace bunit::gpu
