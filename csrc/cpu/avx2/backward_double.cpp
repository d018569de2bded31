#define BUNIT_PART "cpu/kernels/parts/backward_double.h"
#include "isa.h"
