// Images that a pass makes for a few units at a time, in memory that it uses again.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "tensors.h"

namespace bunit {

// An image to come, dense, without data.
inline Image dense_image(Scalar dtype, int64_t n, int64_t c, int64_t h, int64_t w,
                         bool channels_last) {
  const int64_t step = channels_last ? c : 1;
  return {nullptr, dtype, n, c, h, w, c * h * w, channels_last ? 1 : h * w, w * step, step};
}

// Memory that one piece of work leaves to the next, whose pages are then mapped and cached.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  ~Pool() {
    for (const Block& block : free_) ::operator delete(block.data, kAlignment);
  }

  struct Block {
    void* data;
    int64_t bytes;
  };
  struct Return {
    Pool* pool;
    int64_t bytes;
    void operator()(void* data) const {
      const std::lock_guard lock(pool->mutex_);
      pool->free_.push_back({data, bytes});
    }
  };
  using Memory = std::unique_ptr<void, Return>;  // must not outlive the pool

  Memory take(int64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      for (Block& block : free_) {
        if (block.bytes < bytes) continue;
        std::swap(block, free_.back());
        const Block found = free_.back();
        free_.pop_back();
        return {found.data, {this, found.bytes}};
      }
    }
    Memory made(::operator new(size_t(bytes), kAlignment), {this, bytes});
    advise_huge_pages(made.get(), bytes);
    return made;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  std::mutex mutex_;
  std::vector<Block> free_;
};

// Channels [c0, c1) of an image, in memory of a pool.
class ImageOf {
 public:
  ImageOf(Pool& pool, const Image& whole, int64_t c0, int64_t c1, bool channels_last)
      : image_(dense_image(whole.dtype, whole.n, c1 - c0, whole.h, whole.w, channels_last)) {
    const int64_t size = element_size(whole.dtype);
    memory_ = pool.take(whole.n * image_.stride_n * size);
    image_.data = static_cast<char*>(memory_.get()) - c0 * image_.stride_c * size;
  }

  // Addressed by the channels that it has in the whole.
  const Image& image() const { return image_; }

 private:
  Pool::Memory memory_;
  Image image_;
};

}  // namespace bunit
