// Errors on purpose: that each is reported shows that the sanitizers are at work, in Python too.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <limits>
#include <memory>
#include <string>

namespace {

template <class T>
int64_t count_on_all_threads() {
  T count{0};
  torch::stable::parallel_for(0, 10000, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) ++count;
  });
  return count;
}

// Volatile, so that the compiler neither sees the errors nor leaves them out.
int64_t plant(const std::string& what) {
  volatile int64_t one = 1;
  if (what == "past the end") {
    const auto values = std::make_unique<float[]>(8);
    return int64_t(values.get()[7 + one]);
  }
  if (what == "overflow") return std::numeric_limits<int64_t>::max() + one;
  if (what == "race") return count_on_all_threads<int64_t>();
  return count_on_all_threads<std::atomic<int64_t>>();
}

}  // namespace

STABLE_TORCH_LIBRARY(bunit_sanitized, m) { m.def("plant(str what) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(bunit_sanitized, CompositeExplicitAutograd, m) {
  m.impl("plant", TORCH_BOX(&plant));
}
