// Everything that is compiled once for each instruction set. The includer has set BUNIT_ISA,
// BUNIT_TABLE, BUNIT_VECTOR_BYTES, BUNIT_REGISTERS and the compiler's target.
#pragma once

#include "backward.h"
#include "elementwise.h"
#include "forward.h"
#include "linear_wide.h"
#include "table.h"

namespace bunit {

#define BUNIT_STRING_(name) #name
#define BUNIT_STRING(name) BUNIT_STRING_(name)

const Kernels BUNIT_TABLE = {
    BUNIT_STRING(BUNIT_ISA),
    BUNIT_VECTOR_BYTES,
    BUNIT_ISA::kLoadsLanes,
    BUNIT_ISA::kLeastPaired,
    {&BUNIT_ISA::squares_of_row<float>, &BUNIT_ISA::squares_of_row<double>},
    {&BUNIT_ISA::takes_rows<float>, &BUNIT_ISA::takes_rows<double>},
    {&BUNIT_ISA::forward_item<float>, &BUNIT_ISA::forward_item<double>},
    {&BUNIT_ISA::backward_item<float>, &BUNIT_ISA::backward_item<double>},
    {&BUNIT_ISA::linear_item<float>, &BUNIT_ISA::linear_item<double>},
    {&BUNIT_ISA::wide_linear_item<float>, &BUNIT_ISA::wide_linear_item<double>},
    {&BUNIT_ISA::affine_item<float>, &BUNIT_ISA::affine_item<double>},
    {&BUNIT_ISA::reduce_item<float>, &BUNIT_ISA::reduce_item<double>},
};

}  // namespace bunit
