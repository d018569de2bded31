#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(BUNIT_EMULATE_TSAN)
#include <sanitizer/tsan_interface.h>
#elif defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)

// Saves what a function must preserve, and where it was; makes another stack the current one.
extern "C" void bunit_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl bunit_emulation_switch
.hidden bunit_emulation_switch
.type bunit_emulation_switch, @function
bunit_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.globl bunit_emulation_start
.hidden bunit_emulation_start
.type bunit_emulation_start, @function
bunit_emulation_start:
  movq %r12, %rdi
  callq *%rbx
  ud2
)");
extern "C" void bunit_emulation_start();

namespace {

void* first_frame(char* top, void (*entry)(void*), void* argument) {
  void** frame = reinterpret_cast<void**>(top) - 9;
  for (int i = 0; i < 9; ++i) frame[i] = nullptr;
  frame[3] = argument;                        // popped into r12
  frame[4] = reinterpret_cast<void*>(entry);  // into rbx
  frame[6] = reinterpret_cast<void*>(&bunit_emulation_start);
  return frame;
}

}  // namespace

#elif defined(__aarch64__)

extern "C" void bunit_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl bunit_emulation_switch
.hidden bunit_emulation_switch
.type bunit_emulation_switch, %function
bunit_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.globl bunit_emulation_start
.hidden bunit_emulation_start
.type bunit_emulation_start, %function
bunit_emulation_start:
  mov x0, x20
  blr x19
  brk #1
)");
extern "C" void bunit_emulation_start();

namespace {

void* first_frame(char* top, void (*entry)(void*), void* argument) {
  void** frame = reinterpret_cast<void**>(top) - 20;
  for (int i = 0; i < 20; ++i) frame[i] = nullptr;
  frame[0] = reinterpret_cast<void*>(entry);
  frame[1] = argument;
  frame[11] = reinterpret_cast<void*>(&bunit_emulation_start);
  return frame;
}

}  // namespace

#else
#error "the emulation of CUDA switches stacks by hand: x86-64 and aarch64 only"
#endif

namespace bunit::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(BUNIT_EMULATE_TSAN)
constexpr size_t kStack = 512 * 1024;  // sanitizers put space around every variable
#else
constexpr size_t kStack = 128 * 1024;
#endif

}  // namespace

Fiber::Fiber(void (*entry)(void*), void* argument) {
  void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(memory);
  mprotect(stack_, size_t(getpagesize()), PROT_NONE);
  top_ = first_frame(stack_ + kStack, entry, argument);
#if defined(BUNIT_EMULATE_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(BUNIT_EMULATE_TSAN)
  __tsan_destroy_fiber(tsan_);
#elif defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStack);  // another mapping may come to lie there
#endif
  munmap(stack_, kStack);
}

void Fiber::resume() {
#if defined(BUNIT_EMULATE_TSAN)
  tsan_outside_ = __tsan_get_current_fiber();
  // A switch orders nothing: only barriers do.
  __tsan_switch_to_fiber(tsan_, __tsan_switch_to_fiber_no_sync);
#elif defined(__SANITIZE_ADDRESS__)
  void* kept = nullptr;
  __sanitizer_start_switch_fiber(&kept, stack_, kStack);
#endif
  bunit_emulation_switch(&outside_, top_);
#if !defined(BUNIT_EMULATE_TSAN) && defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#if defined(BUNIT_EMULATE_TSAN)
  __tsan_switch_to_fiber(tsan_outside_, __tsan_switch_to_fiber_no_sync);
#elif defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&asan_, outside_stack_, outside_size_);
#endif
  bunit_emulation_switch(&top_, outside_);
  entered();
}

void Fiber::entered() const {
#if !defined(BUNIT_EMULATE_TSAN) && defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(asan_, &outside_stack_, &outside_size_);
#endif
}

}  // namespace bunit::emulation
