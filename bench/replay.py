"""A timer that hands out durations which were measured before.

The variants of a group are timed together, interleaved (see :mod:`harness`), when the first of
their tests runs. pytest-benchmark times by itself and one test after another, so it gets the
recorded durations through its own public door, a timer: :class:`Replay` hands them out one by one
while a target that does nothing "runs". Its tables, ``--benchmark-json`` and ``-k`` then work as
ever, on durations that were really measured.
"""

from __future__ import annotations

import pytest


class Replay:
    """A timer for pytest-benchmark: between an odd call and the even one that follows lies the
    next recorded duration."""

    def __init__(self):
        self.durations, self.running = iter(()), False

    def load(self, durations: list[float]) -> None:
        self.durations, self.running = iter(durations), False

    def __call__(self) -> float:
        self.running = not self.running
        return 0.0 if self.running else next(self.durations)


REPLAY = Replay()


def replay(benchmark, group, variant: str, **extra) -> None:
    """Reports a measured variant of ``group`` as the result of ``benchmark``; ``extra`` goes into
    its record. Skips what cannot run, fails what gave wrong results."""
    if variant in group.skipped:
        benchmark.skipped = True
        pytest.skip(group.skipped[variant])
    assert variant not in group.failed, group.failed[variant]
    samples = group.samples[variant]
    benchmark.extra_info.update(samples.summary(), **extra)
    REPLAY.load(samples.seconds)
    benchmark.pedantic(_was_timed_before, rounds=len(samples.seconds))


def _was_timed_before():
    pass
