#define BUNIT_PART "cpu/kernels/parts/table.h"
#include "isa.h"
