"""What reads text and files from outside, on the fuzzer's seeds and on damaged ones.

tests/fuzz/run.py goes on from here, guided by coverage; this needs no more than pytest.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "fuzz"))

from targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_some_seed_is_taken(name):
    """Else the target would test nothing but a refusal."""
    assert any(TARGETS[name].run(seed) for seed in TARGETS[name].seeds())


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(name, seed):
    """Cut short, with bytes changed, with bytes repeated."""
    numbers = random.Random(seed)
    seeds = TARGETS[name].seeds()
    for _ in range(60):
        data = bytearray(numbers.choice(seeds))
        for _ in range(numbers.randint(1, 3)):
            start, end = sorted(numbers.randint(0, len(data)) for _ in range(2))
            match numbers.randrange(3):
                case 0:
                    data = data[:start] + data[end:]
                case 1:
                    data[start : start + 1] = numbers.randbytes(numbers.randint(1, 4))
                case 2:
                    data[start:start] = data[start:end][:1000]
        TARGETS[name].run(bytes(data))
