#include "runtime.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "limits.h"

namespace {

// An H200, but for the number of processors where a test wants another.
int processors() {
  const char* wanted = std::getenv("BUNIT_EMULATION_PROCESSORS");
  return wanted ? std::atoi(wanted) : 132;
}
constexpr int kThreadsAProcessor = 2048;
constexpr int kBlocksAProcessor = 32;
constexpr int kShared = 48 * 1024;
constexpr int kSharedOptIn = 227 * 1024;
constexpr int kSharedAProcessor = 228 * 1024;

thread_local cudaError_t last_error = cudaSuccess;
int64_t allocations = 0;

cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

std::unordered_map<const void*, int>& shared_limits() {
  static auto& limits = *new std::unordered_map<const void*, int>;
  return limits;
}

// New memory holds NaN, not zeros, so that what is read before it is written shows.
cudaError_t allocate(void** memory, size_t bytes) {
  ++allocations;
  if (posix_memalign(memory, 256, std::max<size_t>(bytes, 1))) {
    return set_error(cudaErrorMemoryAllocation);
  }
  std::memset(*memory, 0xff, bytes);
  return cudaSuccess;
}

cudaError_t release(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : set_error(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = bunit::emulation::kMaxThreads;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = kShared;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = processors();
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = kThreadsAProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = kSharedAProcessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedOptIn;
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) {
  return allocate(memory, bytes);
}
cudaError_t cudaMallocHost(void** memory, size_t bytes) { return allocate(memory, bytes); }
cudaError_t cudaFree(void* memory) { return release(memory); }
cudaError_t cudaFreeAsync(void* memory, cudaStream_t) { return release(memory); }
cudaError_t cudaFreeHost(void* memory) { return release(memory); }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (bytes) std::memset(memory, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}

namespace bunit::emulation {

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > kSharedOptIn) return set_error(cudaErrorInvalidValue);
  shared_limits()[kernel] = value;
  return cudaSuccess;
}

int resident_blocks(int threads, size_t shared_bytes) {
  const int by_threads = kThreadsAProcessor / std::max(threads, 1);
  const int by_shared = int(size_t(kSharedAProcessor) / (shared_bytes + 1024));
  return std::min({by_threads, by_shared, kBlocksAProcessor});
}

bool check_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const bool empty = !grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z;
  const bool large = grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || block.z > 64 ||
                     uint64_t(block.x) * block.y * block.z > kMaxThreads;
  if (empty || large) return set_error(cudaErrorInvalidConfiguration) == cudaSuccess;
  const auto wish = shared_limits().find(kernel);
  const int limit = std::max(kShared, wish == shared_limits().end() ? 0 : wish->second);
  if (shared_bytes > size_t(limit)) return set_error(cudaErrorInvalidValue) == cudaSuccess;
  return true;
}

}  // namespace bunit::emulation

// For tests, which load the shared object: how often device memory was asked for.
extern "C" __attribute__((visibility("default"))) int64_t bunit_emulation_allocations() {
  return allocations;
}
