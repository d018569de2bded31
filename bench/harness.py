"""Times the variants of one case against each other.

**Interleaved.** All variants of a group run in one process in rounds A B C, B C A, ..., so that
what changes while they run (clock, neighbours) hits all alike; medians and quartiles of the rounds
are kept. The order within a round is drawn anew each time, and a quick variant runs once untimed
before its sample: what the one before it left in caches and in the allocator must not always meet
the same one. A peer that is hopelessly slow (:data:`HOPELESS`) gets two rounds, unless it is one of
those that ours is to be compared with: the loop and the library's forms.

**Fresh and mapped.** glibc gives large freed blocks back to the system, so that each large output
is made of pages that the system must first map and clear: page faults, which can cost more than the
arithmetic. That is what users see (*fresh*). The same code in a child process that keeps freed
blocks (``bunit_kernels.memory``) shows the kernels alone (*mapped*); one that trains by
``python -m bunit_kernels.train`` keeps them too. Page faults a call are counted beside the times,
so that both can be told to be what they are called.
"""

from __future__ import annotations

import gc
import random
import resource
import statistics
import time
import warnings
from dataclasses import dataclass, field

import torch
from memory import peak_bytes
from peers import PEERS, Unsupported, Variant, check, results
from workloads import Case

from bunit_kernels.backends import BackendUnavailable

#: Times the best variant, from which on two rounds are enough; the second where :func:`measure`
#: could not do ``min_rounds`` of all within its budget.
HOPELESS, HOPELESS_IN_HASTE = 20, 6

#: A sample repeats calls until it is this long, so that the clock does not matter.
SAMPLE_SECONDS = 1e-3

#: What is quicker than this is never hopeless.
SLOW_SECONDS = 0.05

#: Variants quicker than this run once untimed before each sample.
QUICK_SECONDS = 5e-3

MAX_ROUNDS = 200


@dataclass
class Samples:
    """Seconds a call, one value a round, and page faults a call likewise."""

    seconds: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    iterations: int = 1
    peak_bytes: int | None = None  # see memory.py; None where it was not measured

    def add(self, seconds: float, faults: float) -> None:
        self.seconds.append(seconds)
        self.faults.append(faults)

    def summary(self) -> dict:
        seconds = self.seconds
        q1, median, q3 = (
            statistics.quantiles(seconds, n=4, method="inclusive")
            if len(seconds) > 1
            else seconds * 3
        )
        return {
            "median": median,
            "q1": q1,
            "q3": q3,
            "min": min(seconds),
            "rounds": len(seconds),
            "iterations": self.iterations,
            "faults": statistics.median(self.faults),
            "peak_bytes": self.peak_bytes,
        }


def worth_more(samples: dict[str, Samples], variants: dict[str, Variant]) -> list[str]:
    """Names of the variants that are not hopelessly slow."""
    medians = {name: statistics.median(s.seconds) for name, s in samples.items()}
    limit = HOPELESS * min(medians.values(), default=0)
    return [
        name for name, t in medians.items() if t <= limit or not may_be_hopeless(variants[name], t)
    ]


def may_be_hopeless(made: Variant, seconds: float) -> bool:
    return seconds > SLOW_SECONDS and made.expendable


@dataclass
class Built:
    """The variants of a case that can run, why the others cannot, and which gave wrong results."""

    variants: dict[str, Variant] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def build(case: Case, names: list[str], checked: bool = True) -> Built:
    """Makes the variants and runs each once: compilation happens here, and with ``checked`` the
    comparison with the loop."""
    torch._dynamo.reset()
    built = Built()
    expected = results(PEERS["loop"].build(case)) if checked else ()
    for name in names:
        try:
            made = PEERS[name].build(case)
            made.expendable = PEERS[name].family == "other"
            if checked:
                check(name, made, expected)
            else:
                results(made)
        except (Unsupported, BackendUnavailable, NotImplementedError) as error:
            built.skipped[name] = first_line(error)
        except AssertionError as error:
            built.failed[name] = str(error)
        except Exception as error:
            if not name.startswith("compile"):
                built.failed[name] = f"{type(error).__name__}: {first_line(error)}"
            else:  # no compiler, or one that cannot compile this
                built.skipped[name] = f"{type(error).__name__}: {first_line(error)}"
        else:
            built.variants[name] = made
    return built


def first_line(error: BaseException) -> str:
    """Of its message, or what kind of error it is."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def measure(
    variants: dict[str, Variant], budget: float, min_rounds: int = 3, device: str = "cpu"
) -> dict[str, Samples]:
    """Interleaved rounds until ``budget`` seconds are spent, but ``min_rounds`` at least."""
    samples = {name: Samples() for name in variants}
    if not variants:
        return samples
    start = time.perf_counter()
    warm_up = {name: _sample(made, 1, device) for name, made in variants.items()}
    first = {name: seconds for name, (seconds, _) in warm_up.items()}
    best = min(first.values())
    if time.perf_counter() - start < budget / 4:  # the first call after another's is a cold one
        first = {name: min(t, _sample(variants[name], 1, device)[0]) for name, t in first.items()}
        best = min(first.values())
    haste = min_rounds * sum(first.values()) > budget
    limit = best * (HOPELESS_IN_HASTE if haste else HOPELESS)
    for name, seconds in first.items():
        samples[name].iterations = max(1, min(100, int(SAMPLE_SECONDS / seconds)))
    hopeless = {
        name for name, t in first.items() if t > limit and may_be_hopeless(variants[name], t)
    }
    for name in hopeless:  # its warm-up is one of its two rounds
        samples[name].add(*warm_up[name])
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(MAX_ROUNDS):
            if done >= min_rounds and time.perf_counter() - start > budget:
                break
            for name in order.sample(list(variants), len(variants)):
                if done >= 1 and name in hopeless:
                    continue
                made = variants[name]
                if first[name] < QUICK_SECONDS:
                    _sample(made, 1, device)
                samples[name].add(*_sample(made, samples[name].iterations, device))
    finally:
        if collecting:
            gc.enable()
    return samples


def _sample(made: Variant, iterations: int, device: str) -> tuple[float, float]:
    """Seconds and page faults a call."""
    run = made.run
    with made.mode():
        _synchronise(device)
        faults = _page_faults()
        start = time.perf_counter()
        for _ in range(iterations):
            run()
        _synchronise(device)
        seconds = time.perf_counter() - start
        faults = _page_faults() - faults
    return seconds / iterations, faults / iterations


def measure_memory(samples: dict[str, Samples], variants: dict[str, Variant], device: str) -> None:
    """Notes what one more call of each variant takes at its height."""
    for name, made in variants.items():
        with made.mode():
            samples[name].peak_bytes = peak_bytes(made.run, device)


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def quiet_warnings() -> None:
    """Peers do what PyTorch warns of (vmap's slow paths, compiled modules in inference mode)."""
    warnings.filterwarnings("ignore", module="torch")
