// The kernels of one instruction set, as a table of functions; index 0 computes in float, 1 in
// double.
#pragma once

#include "calls.h"

namespace bunit {

struct Kernels {
  const char* isa;
  int vector_bytes;
  bool loads_lanes;  // and so reads rows without padding
  int least_paired;  // channels of a block from which conv_rows makes rows in pairs
  int64_t (*squares_of_row[2])(int64_t width);
  bool (*takes_rows[2])(bool plain, int channels, int64_t width);
  void (*forward[2])(const ForwardCall&, int64_t n, int64_t first, int64_t last, int64_t segment,
                     void* scratch);
  void (*backward[2])(const BackwardCall&, int64_t block, int64_t segment, int64_t first,
                      int64_t last, void* scratch);
  void (*linear[2])(const LinearCall&, int64_t part, int64_t first, int64_t last, void* scratch);
  void (*wide_linear[2])(const LinearCall&, int64_t part, int64_t first, int64_t last,
                         void* scratch);
  void (*affine[2])(const AffineCall&, int64_t n, int64_t c0, int64_t c1);
  void (*reduce[2])(const ReduceCall&, int64_t n, int64_t c0, int64_t c1);
};

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace bunit
