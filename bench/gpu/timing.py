"""Times on a CUDA device: interleaved, with cold caches, the host out of the way.

**Device time.** Each sample reads a buffer larger than the L2 cache (so that a layer's tensors come
from memory, as they do in a network), then lets the device wait while the host enqueues the whole
call, and takes the time between two events around it: launch overhead is not in it, unless the host
needs longer than :data:`LONGEST_WAIT` (a loop over units does; ``host_bound`` then says so).

**Call time.** Many calls one after another, the device synchronised once at the end: the larger of
what host and device need, and what a user waits for. Caches are warm in it.

All variants of a group take turns in rounds of drawn order, so that clocks and neighbours hit all
alike; medians and quartiles of the rounds are kept.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field

import torch
from peers import Variant

#: Seconds that the device waits at most for the host to enqueue a call.
LONGEST_WAIT = 5e-3

MIN_ROUNDS, MAX_ROUNDS = 5, 100


@dataclass
class Times:
    """Seconds a call, one value a round."""

    device: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    enqueue: float = 0.0  # the host's part of one call
    peak_bytes: int = 0  # allocated at most during one call, beyond what was before

    def summary(self) -> dict:
        return {
            "device": _summary(self.device),
            "call": _summary(self.call),
            "enqueue": self.enqueue,
            "host_bound": self.enqueue > LONGEST_WAIT,
            "peak_bytes": self.peak_bytes,
        }


def _summary(seconds: list[float]) -> dict:
    q1, median, q3 = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {"median": median, "q1": q1, "q3": q3, "min": min(seconds), "rounds": len(seconds)}


class Flush:
    """Empties the L2 cache of the current device by reading a buffer of several times its size;
    reading leaves nothing behind that has to be written back during what is timed."""

    def __init__(self):
        size = torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.zeros(max(4 * size, 1 << 26) // 4, device="cuda")

    def __call__(self) -> None:
        self.buffer.sum()


def measure(variants: dict[str, Variant], budget: float) -> dict[str, Times]:
    """Rounds until ``budget`` seconds are spent, but :data:`MIN_ROUNDS` at least."""
    times = {name: Times() for name in variants}
    flush, waits, repeats = Flush(), _waits(), {}
    for name, made in variants.items():
        _prepare(made, times[name])
        repeats[name] = max(1, min(50, int(2e-3 / times[name].enqueue)))
    order, start = random.Random(0), time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        for name in order.sample(list(variants), len(variants)):
            made, mine = variants[name], times[name]
            mine.device.append(_device_time(made, flush, waits(2 * mine.enqueue)))
            mine.call.append(_call_time(made, repeats[name]))
    return times


def _prepare(made: Variant, times: Times) -> None:
    """Warms up (cuDNN tries its algorithms in the first call) and takes what is taken once."""
    with made.mode():
        for _ in range(3):
            made.run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        made.run()
        times.enqueue = time.perf_counter() - start
        torch.cuda.synchronize()
        times.peak_bytes = torch.cuda.max_memory_allocated() - before


def _device_time(made: Variant, flush: Flush, cycles: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with made.mode():
        flush()
        torch.cuda._sleep(cycles)
        begin.record()
        made.run()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def _call_time(made: Variant, repeats: int) -> float:
    with made.mode():
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            made.run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats


def _waits():
    """Function that turns seconds into cycles for ``torch.cuda._sleep``."""
    cycles = 10_000_000
    torch.cuda._sleep(cycles)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.cuda._sleep(cycles)
    end.record()
    end.synchronize()
    rate = cycles / (begin.elapsed_time(end) * 1e-3)
    return lambda seconds: int(rate * min(max(seconds, 5e-5), LONGEST_WAIT))
