// Compiles one part of the kernels, BUNIT_PART, for whatever the compiler targets by default: SSE2
// on x86-64, NEON on 64-bit Arm.
#define BUNIT_ISA generic
#define BUNIT_TABLE kGeneric
#define BUNIT_VECTOR_BYTES 16
#if defined(__aarch64__)
#define BUNIT_REGISTERS 32
#else
#define BUNIT_REGISTERS 16
#endif

#include BUNIT_PART
