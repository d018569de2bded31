// Runs the blocks of a launch one after another, the threads of a block as fibers in turn.
//
// Not compiled with ThreadSanitizer: what happens in here is bookkeeping, no access of the
// kernel's. The order that barriers and launches do give to the kernel's accesses is told it by
// hand.
#include "execution.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "limits.h"

#if defined(BUNIT_EMULATE_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace bunit::emulation {

const Place* place = nullptr;

namespace {

void happens_before(void* what) {
#if defined(BUNIT_EMULATE_TSAN)
  __tsan_release(what);
#else
  (void)what;
#endif
}
void happens_after(void* what) {
#if defined(BUNIT_EMULATE_TSAN)
  __tsan_acquire(what);
#else
  (void)what;
#endif
}

enum class State { ready, at_barrier, in_collective, done };

struct Thread {
  std::unique_ptr<Fiber> fiber;
  Place place;
  State state = State::done;
  Where where;  // of the barrier or collective that it waits in
  // Of its part in a collective, and what came out.
  Collective kind{};
  unsigned mask = 0;
  uint64_t value = 0, result = 0;
  int source = 0;
  // Of the warp synchronisations whose lowest lane this is: how many there were, and what they
  // order.
  unsigned syncs = 0;
  char sync_order[2] = {};
};

// The order of threads and blocks (emulation.h).
class Order {
 public:
  Order() {
    const char* wish = std::getenv("BUNIT_EMULATION_ORDER");
    reverse_ = wish && std::string(wish) == "reverse";
    drawn_ = wish && *wish && !reverse_;
    if (drawn_) numbers_.seed(unsigned(std::atoll(wish)));
  }
  void fill(std::vector<int>& order, int count) {
    order.resize(size_t(count));
    std::iota(order.begin(), order.end(), 0);
    if (reverse_) std::reverse(order.begin(), order.end());
    draw(order);
  }
  void draw(std::vector<int>& order) {
    if (drawn_) std::shuffle(order.begin(), order.end(), numbers_);
  }
  int64_t block(int64_t i, int64_t count) const { return reverse_ || drawn_ ? count - 1 - i : i; }

 private:
  bool reverse_ = false, drawn_ = false;
  std::mt19937 numbers_;
};

std::string text(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

int64_t number(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::atoll(text) : 0;
}

class Machine {
 public:
  Machine() {
    const char* removed = std::getenv("BUNIT_EMULATION_WITHOUT_BARRIER");
    if (removed) removed_ = removed;
  }

  void run(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
           const std::function<void()>& body) {
    name_ = name;
    body_ = &body;
    count_ = int(block.x * block.y * block.z);
    grow();
    order_.fill(turns_, count_);
    const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t b = order_.block(i, blocks);
      const uint3 index{unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                        unsigned(b / grid.x / grid.y)};
      run_block(index, grid, block, shared_bytes);
    }
  }

  void* shared() const { return shared_.get(); }

  void barrier(bool predicate, const Where& where) {
    if (!removed_.empty() && text(where) == removed_) return;
    Thread& me = *running_;
    me.where = where;
    // Two in turn: a thread may reach the next barrier before another one has left this.
    char* order = &barrier_order_[barriers_ % 2];
    happens_before(order);
    holding_ += predicate;
    if (++at_barrier_ == count_) {
      open_barrier();
    } else {
      me.state = State::at_barrier;
      me.fiber->leave();
    }
    happens_after(order);
  }
  int held() const { return held_; }

  uint64_t collective(Collective kind, unsigned mask, uint64_t value, int source,
                      const Where& where) {
    Thread& me = *running_;
    const int mine = int(&me - threads_.data()), first = mine / warpSize * warpSize;
    if (!(mask >> (mine - first) & 1)) {
      fail("a thread calls a warp function with a mask that it is not in", where);
    }
    me.kind = kind;
    me.mask = mask;
    me.value = value;
    me.source = source;
    me.where = where;
    me.state = State::in_collective;
    // Of the warp functions __syncwarp alone orders memory.
    Thread& lowest = threads_[size_t(first + std::countr_zero(mask))];
    char* order = &lowest.sync_order[lowest.syncs % 2];
    if (kind == Collective::sync) happens_before(order);
    if (complete(first, mask)) {
      lowest.syncs += kind == Collective::sync;
      finish(first, mask);
    } else {
      me.fiber->leave();
    }
    if (kind == Collective::sync) happens_after(order);
    return me.result;
  }

 private:
  // Fibers are kept for later launches; each runs one thread of every block.
  void grow() {
    if (threads_.size() < size_t(count_)) threads_.resize(kMaxThreads);
    for (int t = 0; t < count_; ++t) {
      if (!threads_[size_t(t)].fiber) {
        threads_[size_t(t)].fiber = std::make_unique<Fiber>(&Machine::live, this);
      }
    }
  }

  static void live(void* machine) {
    Machine& m = *static_cast<Machine*>(machine);
    Thread& me = *m.running_;
    me.fiber->entered();
    for (;;) {
      happens_after(&m.start_);
      (*m.body_)();
      happens_before(&m.end_);
      me.state = State::done;
      me.fiber->leave();
    }
  }

  void run_block(uint3 index, dim3 grid, dim3 block, size_t shared_bytes) {
    shared_bytes -= std::min(shared_bytes, missing_);
    // Exactly as large as asked for, so that what lies behind it is known not to be ours.
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, std::max<size_t>(shared_bytes, 1))) throw std::bad_alloc();
    shared_.reset(memory);
    std::memset(memory, 0xff, shared_bytes);
    for (int t = 0; t < count_; ++t) {
      Thread& thread = threads_[size_t(t)];
      const unsigned i = unsigned(t);
      thread.place = {
          {i % block.x, i / block.x % block.y, i / block.x / block.y}, index, block, grid};
      thread.state = State::ready;
    }
    at_barrier_ = holding_ = 0;
    happens_before(&start_);
    for (int left = count_; left > 0;) left -= one_round();
    happens_after(&end_);
    shared_.reset();
  }

  // Lets every thread that can run do so until it waits or is done; how many are done now.
  int one_round() {
    int done = 0, ran = 0;
    order_.draw(turns_);
    for (int t : turns_) {
      Thread& thread = threads_[size_t(t)];
      if (thread.state != State::ready) continue;
      running_ = &thread;
      place = &thread.place;
      thread.fiber->resume();
      if (failure_.what) {
        const bool two = failure_.other.line() != 0;
        give_up(std::string(failure_.what) + ", at " + text(failure_.where) +
                (two ? " and " + text(failure_.other) : ""));
      }
      ++ran;
      done += thread.state == State::done;
    }
    if (ran == 0) give_up(deadlock());
    return done;
  }

  void open_barrier() {
    const Where& where = running_->where;
    for (int t = 0; t < count_; ++t) {
      const Where& other = threads_[size_t(t)].where;
      if (other.line() != where.line() || std::strcmp(other.file_name(), where.file_name()) != 0) {
        fail("divergent barrier: threads of one block wait at different ones", where, other);
      }
      threads_[size_t(t)].state = State::ready;
    }
    held_ = holding_;
    ++barriers_;
    at_barrier_ = holding_ = 0;
  }

  // Threads of the warp that begins at `first` and are in the mask.
  template <typename Body>
  void for_lanes(int first, unsigned mask, Body&& body) {
    for (int l = 0; l < warpSize && first + l < count_; ++l) {
      if (mask >> l & 1) body(l, threads_[size_t(first + l)]);
    }
  }

  bool complete(int first, unsigned mask) {
    bool all = true;
    for_lanes(first, mask, [&](int, Thread& t) {
      all = all && t.state == State::in_collective;
      if (t.state == State::in_collective && (t.mask != mask || t.kind != running_->kind)) {
        fail("divergent warp: lanes of one mask are in different warp functions", running_->where,
             t.where);
      }
    });
    return all;
  }

  void finish(int first, unsigned mask) {
    uint64_t sum = 0, bits = 0;
    int lanes = 0;
    for_lanes(first, mask, [&](int l, Thread& t) {
      sum += t.value;
      bits |= uint64_t(t.value != 0) << l;
      ++lanes;
    });
    for_lanes(first, mask, [&](int, Thread& t) {
      switch (t.kind) {
        case Collective::sync:
          break;
        case Collective::shuffle:
          if (t.source < first || t.source >= std::min(first + warpSize, count_) ||
              !(mask >> (t.source - first) & 1)) {
            fail("a lane shuffles from one that takes no part", t.where);
          }
          t.result = threads_[size_t(t.source)].value;
          break;
        case Collective::ballot:
          t.result = bits;
          break;
        case Collective::all:
          t.result = std::popcount(bits) == lanes;
          break;
        case Collective::any:
          t.result = bits != 0;
          break;
        case Collective::add:
          t.result = sum;
          break;
      }
      t.state = State::ready;
    });
  }

  std::string deadlock() const {
    int done = 0, barrier = 0, warp = 0;
    std::string at;
    for (int t = 0; t < count_; ++t) {
      const Thread& thread = threads_[size_t(t)];
      done += thread.state == State::done;
      barrier += thread.state == State::at_barrier;
      warp += thread.state == State::in_collective;
      if (thread.state != State::done && at.find(text(thread.where)) == std::string::npos) {
        at += (at.empty() ? "" : ", ") + text(thread.where);
      }
    }
    return "deadlock: of " + std::to_string(count_) + " threads " + std::to_string(barrier) +
           " wait at a barrier, " + std::to_string(warp) + " in a warp function, " +
           std::to_string(done) + " have returned; waiting at " + at;
  }

  // Ends the launch from within a fiber, which is given up with all others: nothing that allocates.
  [[noreturn]] void fail(const char* what, const Where& where, const Where& other = {}) {
    failure_ = {what, where, other};
    running_->fiber->leave();
    std::abort();  // it is never resumed
  }

  // The same, seen from outside the fibers.
  [[noreturn]] void give_up(const std::string& why) {
    const uint3 b = threads_[0].place.block;
    threads_.clear();
    shared_.reset();
    failure_ = {};
    throw std::runtime_error("emulated CUDA, kernel " + std::string(name_) + ", block (" +
                             std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                             std::to_string(b.z) + "): " + why);
  }

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };

  const char* name_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  int count_ = 0;
  std::vector<Thread> threads_;
  std::vector<int> turns_;
  Thread* running_ = nullptr;
  std::unique_ptr<void, Free> shared_;
  struct {
    const char* what = nullptr;
    Where where, other;
  } failure_;
  // Nothing but addresses that stand for an order.
  char start_ = 0, end_ = 0, barrier_order_[2] = {};
  unsigned barriers_ = 0;
  int at_barrier_ = 0, holding_ = 0, held_ = 0;
  Order order_;
  std::string removed_;  // barrier
  const size_t missing_ = size_t(number("BUNIT_EMULATION_SHARED_LESS"));
};

// Names of the kernels launched so far.
std::vector<std::string> launches;

// Never destroyed: fibers outlive whatever else is taken down at exit.
Machine& machine() {
  static Machine& machine = *new Machine;
  return machine;
}

}  // namespace

void* dynamic_shared() { return machine().shared(); }
void barrier(const Where& where) { machine().barrier(false, where); }
int counting_barrier(bool predicate, const Where& where) {
  machine().barrier(predicate, where);
  return machine().held();
}
uint64_t collective(Collective kind, unsigned mask, uint64_t value, int source,
                    const Where& where) {
  const int first = linear_thread() / warpSize * warpSize;
  return machine().collective(kind, mask, value, first + source, where);
}

void run(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
         const std::function<void()>& body) {
  if (!check_launch(kernel, grid, block, shared_bytes)) return;  // cudaGetLastError() tells
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  launches.emplace_back(name);
  machine().run(name, grid, block, shared_bytes, body);
}

}  // namespace bunit::emulation

// For tests, which load the shared object.
extern "C" __attribute__((visibility("default"))) int64_t bunit_emulation_launches() {
  return int64_t(bunit::emulation::launches.size());
}
extern "C" __attribute__((visibility("default"))) const char* bunit_emulation_launch(int64_t i) {
  return bunit::emulation::launches[size_t(i)].c_str();
}
