// Strings that operators take.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <utility>

namespace bunit {

// A std::string but for how it comes out of the stable ABI: torch's own conversion to std::string
// leaks one at every call (pytorch/pytorch#191340; in 2.11 to 2.13, mended in 2.15).
struct Text : std::string {
  explicit Text(std::string text) : std::string(std::move(text)) {}
};

}  // namespace bunit

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)

// As that of std::string: what the handle stands for is the receiver's to delete.
template <>
struct ToImpl<bunit::Text> {
  static bunit::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    STD_TORCH_CHECK(torch_string_length(handle, &length) == AOTI_TORCH_SUCCESS &&
                        torch_string_c_str(handle, &data) == AOTI_TORCH_SUCCESS,
                    "a string argument cannot be read");
    bunit::Text text(std::string(data, length));
    STD_TORCH_CHECK(torch_delete_string(handle) == AOTI_TORCH_SUCCESS,
                    "a string argument cannot be freed");
    return text;
  }
};

HIDDEN_NAMESPACE_END(torch, stable, detail)
