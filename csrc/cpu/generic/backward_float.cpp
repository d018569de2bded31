#define BUNIT_PART "cpu/kernels/parts/backward_float.h"
#include "isa.h"
