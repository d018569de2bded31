// CUDA's keywords and vector types.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __forceinline__ inline __attribute__((always_inline))

// Aligned as on the device: a sanitizer reports a vector load from an address that is not.
#define BUNIT_VECTOR(T, name, align)                                         \
  struct alignas(align) name##2 { T x, y; };                                 \
  struct name##3 { T x, y, z; };                                             \
  struct alignas(2 * align > 16 ? 16 : 2 * align) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                 \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }         \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

BUNIT_VECTOR(float, float, 8)
BUNIT_VECTOR(double, double, 16)
BUNIT_VECTOR(int, int, 8)
BUNIT_VECTOR(unsigned, uint, 8)
BUNIT_VECTOR(short, short, 4)
BUNIT_VECTOR(unsigned short, ushort, 4)
BUNIT_VECTOR(unsigned char, uchar, 2)
BUNIT_VECTOR(long long, longlong, 16)
#undef BUNIT_VECTOR

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
