// The instruction set chosen for this machine, threads, and scratch memory.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/table.h"

namespace bunit {

// The widest kernels that this processor runs; BUNIT_CPU_ISA=generic|avx2|avx512 asks for others.
const Kernels& kernels();

// At least `bytes` of this thread's own, aligned to a cache line, kept between calls.
void* scratch(int64_t bytes);

// Runs body(item) for every item of [0, count) on all threads. Threads take the next items when
// they are done with theirs, so that one that is held up does not hold up all.
void for_each_item(int64_t count, const std::function<void(int64_t)>& body);

int64_t num_threads();

// Asks for huge pages for a large fresh output: its first touch then costs one page fault every
// 2 MiB instead of one every 4 KiB, which otherwise takes longer than the computation.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace bunit
