// A stack of its own and the switch to and from it, told to the sanitizers.
#pragma once

#include <cstddef>

namespace bunit::emulation {

class Fiber {
 public:
  // `entry` never returns.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void resume();         // runs the fiber until it calls leave(), on whatever thread of the host
  void leave();          // back to resume()
  void entered() const;  // the first thing `entry` calls

 private:
  char* stack_;  // the lowest page is a guard
  void* top_ = nullptr;
  void* outside_ = nullptr;
  void* tsan_ = nullptr;
  void* tsan_outside_ = nullptr;
  void* asan_ = nullptr;
  mutable const void* outside_stack_ = nullptr;
  mutable size_t outside_size_ = 0;
};

}  // namespace bunit::emulation
