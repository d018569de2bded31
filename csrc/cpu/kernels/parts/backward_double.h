#include "cpu/kernels/backward.h"

namespace bunit::BUNIT_ISA {
template void backward_item<double>(const BackwardCall&, int64_t, int64_t, int64_t, int64_t, void*);
}  // namespace bunit::BUNIT_ISA
