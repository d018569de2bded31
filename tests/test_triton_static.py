"""What is compiled of the Triton kernels, for a GPU that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bunit_kernels import backends

if reason := backends.why_not("triton"):
    pytest.skip(reason, allow_module_level=True)

RESOURCES = Path(__file__).resolve().parent.parent / "bench" / "resources"

PROGRAM = """
from unittest import mock
import torch
from triton_kernels import compiling_for
from bunit_kernels import StackedConv2d, StackedLinear, backend
from bunit_kernels.backends.triton import Triton

found = {}
conv, linear = StackedConv2d("2-4-2", 2), StackedLinear("4-8-4", 2)
with compiling_for(90, found, False):
    with mock.patch.object(Triton, "why_not", lambda *_: None), backend("triton"):
        for batch in (32, 7, 3, 1):
            conv(torch.zeros(batch, 4, 9, 12, requires_grad=True)).sum().backward()
            linear(torch.zeros(batch, 8, requires_grad=True)).sum().backward()
            print(len(found))
"""


def test_another_batch_compiles_nothing():
    """Many images or one, a number that divides well or a prime."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(RESOURCES), str(RESOURCES.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True,
        env=environment | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *others = map(int, done.stdout.split())
    assert first > 5 and others == [first] * 3
