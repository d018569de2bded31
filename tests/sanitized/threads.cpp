// The parallel loop of the stable ABI over plain threads, in place of libtorch's over OpenMP.
//
// ThreadSanitizer knows that what came before a thread was made, and what comes after it was
// joined, is no race. Of OpenMP's barriers, in a library that is not compiled for it, it knows
// nothing, and would report every value that goes through one. Four threads, on any number of
// cores.

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kThreads = 4;

}  // namespace

AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc body,
                                  void* context) {
  const int64_t grains = (end - begin + grain_size - 1) / std::max<int64_t>(1, grain_size);
  const int64_t parts = std::clamp<int64_t>(grains, 1, kThreads);
  const int64_t size = (end - begin + parts - 1) / parts;
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += size) {
    threads.emplace_back([=] { body(first, std::min(first + size, end), context); });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = kThreads;
  return 0;
}
