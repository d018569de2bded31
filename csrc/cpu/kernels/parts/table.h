// The kernels of one instruction set as a table, and those that have no part of their own. Each
// part is compiled once for each instruction set; its includer has set BUNIT_ISA, BUNIT_TABLE,
// BUNIT_VECTOR_BYTES, BUNIT_REGISTERS and the compiler's target.

#include "cpu/kernels/table.h"

#include "cpu/kernels/conv_rows.h"
#include "cpu/kernels/elementwise.h"
#include "cpu/kernels/linear_wide.h"
#include "cpu/kernels/square_planes.h"

namespace bunit {

namespace BUNIT_ISA {
template <class T>
void forward_item(const ForwardCall&, int64_t, int64_t, int64_t, int64_t, void*);
template <class T>
void backward_item(const BackwardCall&, int64_t, int64_t, int64_t, int64_t, void*);
}  // namespace BUNIT_ISA

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
