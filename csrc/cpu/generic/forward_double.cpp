#define BUNIT_PART "cpu/kernels/parts/forward_double.h"
#include "isa.h"
