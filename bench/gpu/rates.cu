// What a GPU can do, for the floor under every time: prints, as JSON, FLOP/s of fused multiply-adds
// in registers (float32, and pairs of bfloat16) and bytes/s of a copy (read plus written).
// Each is the best of a few runs timed with events.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kThreads = 256, kChains = 16, kSteps = 4096;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __nv_bfloat162 fma_of(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __hfma2(a, b, c);
}
__device__ void set(float& value, float to) { value = to; }
__device__ void set(__nv_bfloat162& value, float to) { value = __float2bfloat162_rn(to); }

// Enough chains that do not wait for each other to hide an instruction's latency.
template <typename T>
__global__ void multiply_add(T* out, float factor, float offset) {
  T sums[kChains], a, b;
  set(a, factor);
  set(b, offset);
  for (int i = 0; i < kChains; ++i) set(sums[i], float(threadIdx.x + i));
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) sums[i] = fma_of(sums[i], a, b);
  }
  T sum = sums[0];
  for (int i = 1; i < kChains; ++i) sum = fma_of(sums[i], a, sum);
  out[blockIdx.x * size_t(kThreads) + threadIdx.x] = sum;
}

__global__ void copy(const float4* from, float4* to, size_t count) {
  const size_t stride = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = from[i];
  }
}

template <typename Body>
double best_seconds(Body&& body) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  double best = 1e30;
  for (int i = 0; i < 8; ++i) {
    check(cudaEventRecord(begin));
    body();
    check(cudaGetLastError());
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    best = milliseconds * 1e-3 < best ? milliseconds * 1e-3 : best;
  }
  return best;
}

template <typename T>
double fma_rate(int blocks, double flops_each) {
  T* out = nullptr;
  check(cudaMalloc(&out, size_t(blocks) * kThreads * sizeof(T)));
  const double seconds =
      best_seconds([&] { multiply_add<T><<<blocks, kThreads>>>(out, 0.999f, 1e-3f); });
  check(cudaFree(out));
  return flops_each * kChains * kSteps * kThreads * blocks / seconds;
}

double copy_rate(int blocks) {
  const size_t bytes = size_t(1) << 31;
  float4 *from = nullptr, *to = nullptr;
  check(cudaMalloc(&from, bytes));
  check(cudaMalloc(&to, bytes));
  check(cudaMemset(from, 1, bytes));
  const double seconds =
      best_seconds([&] { copy<<<blocks, kThreads>>>(from, to, bytes / sizeof(float4)); });
  check(cudaFree(from));
  check(cudaFree(to));
  return 2.0 * double(bytes) / seconds;
}

}  // namespace

int main() {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  const int blocks = processors * 8;  // of 256 threads: every processor is full
  std::printf("{\"cores\": %.6g, \"packed\": %.6g, \"copy\": %.6g}\n",
              fma_rate<float>(blocks * 4, 2), fma_rate<__nv_bfloat162>(blocks * 4, 4),
              copy_rate(blocks));
  return 0;
}
