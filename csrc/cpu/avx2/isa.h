// Compiles one part of the kernels, BUNIT_PART, for x86-64 with AVX2 and FMA.
#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BUNIT_ISA avx2
#define BUNIT_TABLE kAvx2
#define BUNIT_VECTOR_BYTES 32
#define BUNIT_REGISTERS 16

// After the system's headers, and to the end of the file: templates are compiled where it ends.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include BUNIT_PART

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
