// CUDA for a host compiler: enough of its language and runtime to run this project's kernels on the
// CPU, block after block, each thread of a block a fiber (execution.cpp). For tests alone.
//
// What is real: barriers, warp shuffles and votes, shared memory, alignment of vector loads, limits
// of a launch. What is stricter than hardware: threads run in any order between barriers, never in
// lockstep; a barrier that not all threads of the block reach, a shuffle that not all its lanes
// reach, and a lane that reads from one outside the mask are errors that say where. Dynamic shared
// memory is a block of exactly the size asked for, filled with NaN. What is not seen: races between
// blocks, caches, and static __shared__ arrays still holding what the block before left there.
//
// Environment variables, read once but for the last:
//   BUNIT_EMULATION_ORDER            the order in which threads and blocks run. Unset: ascending.
//                                    "reverse": descending. A number: drawn anew at every barrier
//                                    with that seed. A race shows as a result that changes.
//   BUNIT_EMULATION_WITHOUT_BARRIER  "file.cuh:123": the __syncthreads() in that line does nothing.
//   BUNIT_EMULATION_SHARED_LESS      so many bytes of dynamic shared memory are missing.
//   BUNIT_EMULATION_PROCESSORS       how many the device has: of few, a block gets more work.
// Those about barriers and shared memory break kernels on purpose, to see that the sanitizers tell.
#pragma once

#include "builtins.h"
#include "execution.h"
#include "low_precision.h"
#include "runtime.h"
#include "vector_types.h"
