"""Layers against their peers: ``pytest bench/ --benchmark-only``, one test a variant."""

from __future__ import annotations

import pytest
from replay import REPLAY, replay


@pytest.mark.benchmark(timer=REPLAY)
def test_layer(benchmark, measured, workload, direction, variant):
    benchmark.group = f"{workload} {direction}"
    group = measured(workload, direction)
    replay(benchmark, group, variant, mapped=group.mapped.get(variant))
