#include "runtime.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "tensors.h"

namespace bunit {
namespace {

bool runs_here(const Kernels& table) {
#if defined(__x86_64__)
  if (&table == &kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (&table == &kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  }
#endif
  return true;
}

const Kernels& choose() {
#if defined(__x86_64__)
  const Kernels* tables[] = {&kAvx512, &kAvx2, &kGeneric};
#else
  const Kernels* tables[] = {&kGeneric};
#endif
  const char* wanted = std::getenv("BUNIT_CPU_ISA");
  for (const Kernels* table : tables) {
    const bool named = wanted == nullptr || std::strcmp(wanted, table->isa) == 0;
    if (named && runs_here(*table)) return *table;
  }
  STD_TORCH_CHECK(false, "environment variable BUNIT_CPU_ISA=", wanted,
                  ": expected generic, avx2 or avx512, and one that this processor has");
  return kGeneric;
}

struct Scratch {
  static constexpr size_t kAlignment = 64;
  void* data = nullptr;
  size_t size = 0;

  void* at_least(size_t bytes) {
    if (bytes > size) {
      release();
      data = ::operator new(bytes, std::align_val_t(kAlignment));
      size = bytes;
    }
    return data;
  }
  void release() {
    if (data) ::operator delete(data, std::align_val_t(kAlignment));
    data = nullptr;
    size = 0;
  }
  ~Scratch() { release(); }
};

constexpr int64_t kMaxScratch = int64_t(4) << 30;
constexpr int64_t kAroundBytes = int64_t(16) << 20;

// Whether the page in the middle of `bytes` of memory is there, or yet to be made.
bool is_mapped(const void* data, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t middle = reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes) / 2;
  unsigned char there = 0;
  return mincore(reinterpret_cast<void*>(middle / page * page), page, &there) == 0 && there & 1;
#else
  (void)data;
  (void)bytes;
  return true;
#endif
}

int64_t largest_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const int64_t size = std::max<int64_t>(0, sysconf(_SC_LEVEL3_CACHE_SIZE));
  return size;
#else
  return 0;
#endif
}

// Non-temporal stores are not ordered by what else tells another thread that they are done.
void finish_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

bool wants_huge_pages() {
  const char* wanted = std::getenv("BUNIT_HUGE_PAGES");
  STD_TORCH_CHECK(!wanted || !std::strcmp(wanted, "0") || !std::strcmp(wanted, "1"),
                  "environment variable BUNIT_HUGE_PAGES=", wanted, ": expected 0 or 1");
  return !wanted || wanted[0] == '1';
}

std::string cpu_isa() { return kernels().isa; }

std::string activation_names() {
  std::string names;
  for (const char* name : kActivationNames) names += std::string(names.empty() ? "" : " ") + name;
  return names;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = choose();
  return table;
}

void check_scratch(int64_t bytes) {
  STD_TORCH_CHECK(bytes >= 0 && bytes <= kMaxScratch, "units, x: these sizes take ", bytes,
                  " bytes of working memory a thread, expected at most ", kMaxScratch);
}

void* scratch(int64_t bytes) {
  thread_local Scratch memory;
  return memory.at_least(size_t(bytes));
}

int64_t num_threads() { return std::max<int64_t>(1, torch::stable::get_num_threads()); }

void for_each_item(int64_t count, const std::function<void(int64_t)>& body) {
  const int64_t threads = std::min(count, num_threads());
  if (threads <= 1) {
    for (int64_t item = 0; item < count; ++item) body(item);
    finish_stores();
    return;
  }
  // Each thread begins with a share of its own, the same in every call: what one left in its cache
  // is of use to it again, and outputs need not be fetched from another's. Who is done helps
  // others.
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    shares[size_t(t)].next = count * t / threads;
    shares[size_t(t)].end = count * (t + 1) / threads;
  }
  // Few enough items at a time to balance, enough that neighbours in memory stay together.
  const int64_t batch = std::max<int64_t>(1, count / (threads * 32));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t k = 0; k < threads; ++k) {
        Share& share = shares[size_t((t + k) % threads)];
        for (int64_t first; (first = share.next.fetch_add(batch)) < share.end;) {
          const int64_t last = std::min(first + batch, share.end);
          for (int64_t item = first; item < last; ++item) body(item);
        }
      }
    }
    finish_stores();
  });
}

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  static const bool wanted = wants_huge_pages();
  if (!wanted || bytes < int64_t(4 * kHuge)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) & ~(kHuge - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

bool goes_around_caches(const Image& out, int64_t piece) {
  const int64_t size = element_size(out.dtype), bytes = out.n * out.c * out.h * out.w * size;
  if (!out.data || bytes < kAroundBytes || piece * size % kLineBytes != 0 ||
      reinterpret_cast<uintptr_t>(out.data) % kLineBytes != 0) {
    return false;
  }
  return bytes > std::max(largest_cache(), kAroundBytes) || is_mapped(out.data, bytes);
}

}  // namespace bunit

STABLE_TORCH_LIBRARY_FRAGMENT(bunit_kernels, m) {
  m.def("cpu_isa() -> str");
  m.def("activation_names() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&bunit::cpu_isa));
  m.impl("activation_names", TORCH_BOX(&bunit::activation_names));
}
