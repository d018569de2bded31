// The instruction set chosen for this machine, threads, and scratch memory.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels/table.h"

namespace bunit {

// The widest kernels that this processor runs; BUNIT_CPU_ISA=generic|avx2|avx512 asks for others.
const Kernels& kernels();

// Refuses work of which a thread would need more than 4 GiB of scratch memory, such as a large
// kernel over a padding of tens of thousands of pixels.
void check_scratch(int64_t bytes);

// At least `bytes` of this thread's own, aligned to a cache line, kept between calls.
void* scratch(int64_t bytes);

// Runs body(item) for every item of [0, count) on all threads. Threads take the next items when
// they are done with theirs, so that one that is held up does not hold up all. What a thread has
// written, around the caches too, is written before its part ends.
void for_each_item(int64_t count, const std::function<void(int64_t)>& body);

int64_t num_threads();

// Asks for huge pages for a large fresh output: its first touch then costs one page fault every
// 2 MiB instead of one every 4 KiB, which otherwise takes longer than the computation. Only those
// that lie in [data, data + bytes) as a whole are asked for, of outputs of 8 MiB or more, and none
// with the environment variable BUNIT_HUGE_PAGES=0.
void advise_huge_pages(void* data, int64_t bytes);

// Whether an output, written in pieces of `piece` elements, is better written around the caches,
// its old contents neither read nor others' displaced. Only in whole cache lines, only large ones,
// and of memory that the process touches for the first time (which the system clears, through the
// caches) only those that are larger than the caches.
//
// 64 units 2-4-2, N=128, 32x32 (67 MB), in ms, through / around the caches: on a Zen 5 with 32 MiB
// of third-level cache, memory new to the process, 13.7/12.0; on a Xeon with 480 MiB,
// new 20.7/24.4, used before 12.8/12.1, that in channels_last 24.7/17.7.
bool goes_around_caches(const Image& out, int64_t piece);

}  // namespace bunit
