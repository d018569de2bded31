// What was made of a key, kept for the next calls with it: as many values as were made last.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace bunit::gpu {

// Safe to use from several threads; a value lives on with whoever still holds it. Keys are compared
// one by one, which for these few is less than to compute a hash of hundreds of ints.
template <class Key, class Value, size_t Most>
class BoundedCache {
 public:
  template <class Lookup, class Make>
  std::shared_ptr<const Value> get(const Lookup& key, Make make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& entry : entries_) {
      if (entry.first == key) return entry.second;
    }
    auto value = std::make_shared<const Value>(make());
    if (entries_.size() < Most) {
      entries_.push_back({Key(key), value});
    } else {
      entries_[oldest_++ % Most] = {Key(key), value};
    }
    return value;
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<Key, std::shared_ptr<const Value>>> entries_;
  size_t oldest_ = 0;
};

}  // namespace bunit::gpu
