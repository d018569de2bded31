"""Whole networks against their dense counterparts: ``pytest bench/ --benchmark-only``."""

from __future__ import annotations

import pytest
from replay import REPLAY, replay


@pytest.mark.benchmark(timer=REPLAY)
def test_network(benchmark, measured_network, network, direction, network_variant):
    benchmark.group = f"{network} {direction}"
    replay(benchmark, measured_network(network, direction), network_variant)
