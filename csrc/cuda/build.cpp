// Which architectures and toolkit the CUDA part was built for, as an operator.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>

#include <string>

namespace bunit {
namespace {

// Like "800, 900, 1000; CUDA 13.0"; setup.py defines the architectures.
std::string cuda_build() {
  static constexpr int kArchitectures[] = {BUNIT_ARCHITECTURES};
  std::string text;
  for (int arch : kArchitectures) text += (text.empty() ? "" : ", ") + std::to_string(arch);
  return text + "; CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
         std::to_string(CUDART_VERSION % 1000 / 10);
}

}  // namespace
}  // namespace bunit

STABLE_TORCH_LIBRARY_FRAGMENT(bunit_kernels, m) { m.def("cuda_build() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(bunit_kernels, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", TORCH_BOX(&bunit::cuda_build));
}
