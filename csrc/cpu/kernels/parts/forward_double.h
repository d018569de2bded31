#include "cpu/kernels/forward.h"

namespace bunit::BUNIT_ISA {
template void forward_item<double>(const ForwardCall&, int64_t, int64_t, int64_t, int64_t, void*);
}  // namespace bunit::BUNIT_ISA
