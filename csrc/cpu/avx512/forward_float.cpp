#define BUNIT_PART "cpu/kernels/parts/forward_float.h"
#include "isa.h"
