// Whether unit_forward has compile-time code for units of these widths: prints 1 or 0.

#include <cstdio>
#include <cstdlib>

#include "cuda/fixed_widths.h"

int main(int count, char** widths) {
  bunit::gpu::Kind kind{};
  kind.kernel = 3;
  for (int i = 1; i < count; ++i) kind.widths[i - 1] = short(std::atoi(widths[i]));
  std::printf("%d\n", bunit::gpu::fixed_code(kind) >= 0);
}
