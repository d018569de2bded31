// Compiles one part of the kernels, BUNIT_PART, for x86-64 with AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BUNIT_ISA avx512
#define BUNIT_TABLE kAvx512
#define BUNIT_VECTOR_BYTES 64
#define BUNIT_REGISTERS 32

// After the system's headers, and to the end of the file: templates are compiled where it ends.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#include BUNIT_PART

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
