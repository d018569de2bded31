// Small kernels that show what the emulation runs right and what it reports, a case an argument.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cuda/portable.h"

namespace {

constexpr int kThreads = 128;

// Writes each block's values backwards, through shared memory.
__global__ void reverse(const float* x, float* y) {
  BUNIT_DYNAMIC_SHARED(float, tile);
  const int first = int(blockIdx.x * blockDim.x);
  tile[threadIdx.x] = x[first + int(threadIdx.x)];
  __syncthreads();
  y[first + int(threadIdx.x)] = tile[blockDim.x - 1 - threadIdx.x];
}

// Sum of each block's values: shuffles in a warp, then static shared memory.
__global__ void sum(const float* x, float* y) {
  __shared__ float parts[kThreads / 32];
  float value = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    value = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) value += parts[w];
    y[blockIdx.x] = value;
  }
  __syncthreads();
}

// Three-point sums over a tile with a halo of one value a side.
__global__ void blur(const float* x, float* y, int size) {
  BUNIT_DYNAMIC_SHARED(float, tile);
  const int first = int(blockIdx.x * blockDim.x);
  for (int i = int(threadIdx.x); i < int(blockDim.x) + 2; i += int(blockDim.x)) {
    const int from = first + i - 1;
    tile[i] = from >= 0 && from < size ? x[from] : 0;
  }
  __syncthreads();
  const int i = int(threadIdx.x);
  if (first + i < size) y[first + i] = tile[i] + tile[i + 1] + tile[i + 2];
}

__global__ void lanes(unsigned* y) {
  const unsigned t = threadIdx.x, half = t % 32 < 16 ? 0xffffu : 0xffff0000u;
  y[t] = __shfl_down_sync(~0u, t, 1);
  y[t] += 1000 * __shfl_up_sync(half, t, 3, 16);
  y[t] += 1000000 * unsigned(__popc(__ballot_sync(half, t % 3 == 0)));
}

__global__ void diverging() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void leaving_early() {
  if (threadIdx.x >= 100) return;
  __syncthreads();
}
__global__ void missing_lane(int* y) {
  if (threadIdx.x != 5) y[threadIdx.x] = __shfl_sync(~0u, int(threadIdx.x), 0);
}
__global__ void outside_mask(int* y) {
  if (threadIdx.x < 8) y[threadIdx.x] = __shfl_sync(0xffu, int(threadIdx.x), 9);
}
__global__ void not_in_mask() { __syncwarp(0xfu); }
__global__ void different_calls() {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    __ballot_sync(~0u, 1);
  }
}
__global__ void unwritten(float* y) {
  BUNIT_DYNAMIC_SHARED(float, tile);
  y[threadIdx.x] = tile[threadIdx.x];
}
__global__ void misaligned(const float* x, float* y) {
  *reinterpret_cast<float4*>(y) = *reinterpret_cast<const float4*>(x + 1);
}
__global__ void static_overrun(float* y, int size) {
  __shared__ float tile[kThreads];
  for (int i = 0; i <= size; ++i) tile[i] = float(i);
  y[0] = tile[0];
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(3);
}
void check(cudaError_t error, cudaError_t wanted) {
  check(error == wanted, cudaGetErrorString(error));
}

std::vector<float> ramp(int size) {
  std::vector<float> x(static_cast<size_t>(size));
  for (int i = 0; i < size; ++i) x[size_t(i)] = float(i);
  return x;
}

void run_reverse() {
  const int size = 3 * kThreads;
  const auto x = ramp(size);
  std::vector<float> y(x.size());
  BUNIT_LAUNCH(reverse, 3, kThreads, kThreads * sizeof(float), nullptr, x.data(), y.data());
  for (int i = 0; i < size; ++i) {
    const int block = i / kThreads * kThreads;
    check(y[size_t(i)] == float(2 * block + kThreads - 1 - i), "reverse");
  }
}

void run_sum() {
  const auto x = ramp(3 * kThreads);
  std::vector<float> y(3);
  BUNIT_LAUNCH(sum, 3, kThreads, 0, nullptr, x.data(), y.data());
  for (int b = 0; b < 3; ++b) {
    check(y[size_t(b)] == float(kThreads * (kThreads * b) + kThreads * (kThreads - 1) / 2), "sum");
  }
}

void run_blur() {
  const int size = 3 * kThreads - 5;
  const auto x = ramp(size);
  std::vector<float> y(x.size());
  const size_t tile = (kThreads + 2) * sizeof(float);
  BUNIT_LAUNCH(blur, 3, kThreads, tile, nullptr, x.data(), y.data(), size);
  for (int i = 1; i < size - 1; ++i) check(y[size_t(i)] == float(3 * i), "blur");
}

void run_lanes() {
  std::vector<unsigned> y(64);
  BUNIT_LAUNCH(lanes, 1, 64, 0, nullptr, y.data());
  for (unsigned t = 0; t < 64; ++t) {
    const unsigned down = t % 32 == 31 ? t : t + 1;
    const unsigned up = t % 16 < 3 ? t : t - 3;
    unsigned count = 0;
    for (unsigned i = t / 16 * 16; i < t / 16 * 16 + 16; ++i) count += i % 3 == 0;
    check(y[t] == down + 1000 * up + 1000000 * count, "lanes");
  }
}

void run_limits() {
  float y[kThreads];
  BUNIT_LAUNCH(unwritten, 0, kThreads, 0, nullptr, y);
  check(cudaGetLastError(), cudaErrorInvalidConfiguration);
  BUNIT_LAUNCH(unwritten, 1, 1025, 0, nullptr, y);
  check(cudaGetLastError(), cudaErrorInvalidConfiguration);
  BUNIT_LAUNCH(unwritten, dim3(1, 65536), kThreads, 0, nullptr, y);
  check(cudaGetLastError(), cudaErrorInvalidConfiguration);
  BUNIT_LAUNCH(unwritten, 1, kThreads, 100 * 1024, nullptr, y);
  check(cudaGetLastError(), cudaErrorInvalidValue);
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  check(cudaFuncSetAttribute(unwritten, attribute, 228 * 1024), cudaErrorInvalidValue);
  cudaGetLastError();
  check(cudaFuncSetAttribute(unwritten, attribute, 100 * 1024), cudaSuccess);
  BUNIT_LAUNCH(unwritten, 1, kThreads, 100 * 1024, nullptr, y);
  check(cudaGetLastError(), cudaSuccess);
  for (float value : y) check(value != value, "shared memory begins as NaN");
}

void run_speed() {
  const auto x = ramp(20000 * kThreads);
  std::vector<float> y(20000);
  BUNIT_LAUNCH(sum, 20000, kThreads, 0, nullptr, x.data(), y.data());
}

// 16-bit types against the device's rounding, to the nearest and of two to the even.
void run_low_precision() {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    __nv_bfloat16 b;
    __half h;
    b.bits = h.bits = uint16_t(bits);
    const float fb = __bfloat162float(b), fh = __half2float(h);
    check(fb != fb || __float2bfloat16(fb).bits == bits, "bfloat16 there and back");
    check(fh != fh || __float2half(fh).bits == bits, "float16 there and back");
  }
  const struct {
    float value;
    unsigned half, bfloat16;
  } rounded[] = {
      {1 + 0x1p-11f, 0x3c00, 0x3f80}, {1 + 0x3p-11f, 0x3c02, 0x3f80}, {1 + 0x1p-8f, 0x3c04, 0x3f80},
      {1 + 0x3p-8f, 0x3c0c, 0x3f82},  {65519.996f, 0x7bff, 0x4780},   {65520, 0x7c00, 0x4780},
      {0x1p-25f, 0x0000, 0x3300},     {0x1.8p-25f, 0x0001, 0x3340},   {-0x1.8p-24f, 0x8002, 0xb3c0},
      {0x1.ffep-15f, 0x0400, 0x3880}, {3.4e38f, 0x7c00, 0x7f80}};
  for (const auto& r : rounded) {
    check(__float2half(r.value).bits == r.half, "rounding to float16");
    check(__float2bfloat16(r.value).bits == r.bfloat16, "rounding to bfloat16");
  }
}

void run_case(const char* name) {
  float y[kThreads + 4] = {};
  int n[64];
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("reverse")) return run_reverse();
  if (is("sum")) return run_sum();
  if (is("blur")) return run_blur();
  if (is("lanes")) return run_lanes();
  if (is("limits")) return run_limits();
  if (is("speed")) return run_speed();
  if (is("low_precision")) return run_low_precision();
  if (is("diverging")) {
    BUNIT_LAUNCH(diverging, 1, 64, 0, nullptr);
  } else if (is("leaving_early")) {
    BUNIT_LAUNCH(leaving_early, 1, kThreads, 0, nullptr);
  } else if (is("missing_lane")) {
    BUNIT_LAUNCH(missing_lane, 1, 64, 0, nullptr, n);
  } else if (is("outside_mask")) {
    BUNIT_LAUNCH(outside_mask, 1, 64, 0, nullptr, n);
  } else if (is("not_in_mask")) {
    BUNIT_LAUNCH(not_in_mask, 1, 32, 0, nullptr);
  } else if (is("different_calls")) {
    BUNIT_LAUNCH(different_calls, 1, 32, 0, nullptr);
  } else if (is("misaligned")) {
    const auto x = ramp(8);
    BUNIT_LAUNCH(misaligned, 1, 1, 0, nullptr, x.data(), y);
  } else if (is("static_overrun")) {
    BUNIT_LAUNCH(static_overrun, 1, 1, 0, nullptr, y, kThreads);
  } else {
    check(false, "no such case");
  }
}

}  // namespace

int main(int count, char** names) {
  try {
    for (int i = 1; i < count; ++i) run_case(names[i]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return 0;
}
