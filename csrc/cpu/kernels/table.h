// The kernels of one instruction set, as a table of functions; index 0 computes in float, 1 in
// double.
#pragma once

#include "calls.h"

namespace bunit {

struct Kernels {
  const char* isa;
  int vector_bytes;
  void (*forward[2])(const ForwardCall&, int64_t n, int64_t first, int64_t last, int64_t segment,
                     void* scratch);
};

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace bunit
