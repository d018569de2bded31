"""The compiled part holds kernels for several instruction sets and chooses when it is loaded: what
``BUNIT_CPU_ISA`` names is tested in processes of its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bunit_kernels import backend

HERE = Path(__file__).parent
SHOW = "import torch, bunit_kernels; print(torch.ops.bunit_kernels.cpu_isa())"


def check_cases() -> None:
    """What a process of its own runs: every fourth named case in a dtype, and random ones."""
    import reference_checks
    import test_functional as tests

    torch.set_num_threads(1)
    with backend("cpp"):
        for first, dtype in enumerate((*tests.FULL, *tests.HALF)):
            for op, case in reference_checks.NAMED[first::4]:
                case = tests.smooth(case) if dtype in tests.HALF else case
                reference_checks.check_against_reference(op, case, dtype, "0")
        for index in range(60):
            case = tests.random_conv(random.Random(index))
            reference_checks.check_against_reference(tests.unit_conv2d, case, torch.float32, index)


def run(isa, *command):
    environment = {**os.environ, "BUNIT_CPU_ISA": isa, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    return subprocess.run(
        [sys.executable, *command],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def chosen(isa):
    """What is chosen where ``isa`` is asked for; ``None`` where the processor lacks it."""
    result = run(isa, "-c", SHOW)
    if "one that this processor has" in result.stderr:
        return None
    return result.stdout.strip() or result.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_kernels_of_each_instruction_set(isa):
    if isa == torch.ops.bunit_kernels.cpu_isa():
        pytest.skip(f"{isa} is what all other tests run")
    found = chosen(isa)
    if found is None:
        pytest.skip(f"this processor has no {isa}")
    assert found == isa
    result = run(isa, "-c", "import test_instruction_sets as t; t.check_cases()")
    assert result.returncode == 0, result.stderr


def test_an_unknown_instruction_set_is_told():
    result = run(
        "sse9", "-c", "import torch, bunit_kernels as b; torch.ops.bunit_kernels.cpu_isa()"
    )
    assert result.returncode != 0
    assert "BUNIT_CPU_ISA=sse9" in result.stderr and "generic, avx2 or avx512" in result.stderr
