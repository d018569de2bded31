"""Linear units of the ``triton`` backend under Triton's interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from reference_cases import LEVEL_LINEARS, UNIT_LINEARS, LinearCase, random_linear, smooth, some
from reference_checks import check_against_reference, check_nonfinite
from reference_runs import draw, linear, unit_linear

from bunit_kernels import backend, backends

if reason := backends.why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

CASES = [
    *((linear, case) for case in LEVEL_LINEARS),
    *((unit_linear, case) for case in UNIT_LINEARS),
    (linear, LinearCase("32-48", 2, size=(70,))),
    (linear, LinearCase("80-100", 2, size=(3, 7))),
    (unit_linear, LinearCase("20-33-64", 2, size=(70,))),
    (unit_linear, LinearCase("2-80-3", 2, size=(9,))),  # too wide for registers
    (unit_linear, LinearCase("2-3-1-4-2-3", 3, size=(9,))),  # too deep for one launch
]
NAMED = some(CASES, 3)
named = pytest.mark.parametrize(
    ("op", "case"), NAMED, ids=[f"{op.__name__}-{case}" for op, case in NAMED]
)


@pytest.fixture(autouse=True)
def triton():
    with backend("triton"):
        yield


@named
def test_outputs_and_gradients(op, case, seed):
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize(
    ("op", "case"), some(CASES, 9), ids=[f"{op.__name__}-{case}" for op, case in some(CASES, 9)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_at_low_precision(op, case, dtype, seed):
    check_against_reference(op, smooth(case), dtype, seed)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("op", [linear, unit_linear], ids=lambda f: f.__name__)
def test_random_units(op, index, seed):
    case = random_linear(random.Random(seed), depth=1 if op is linear else None)
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "grad", "weights"])
def test_nan_and_infinity_travel(where, value, name, seed):
    """Through their own unit alone: units are filled up to tiles, but not with one another."""
    case = LinearCase(("4-8-4", "1-2-1") * 2, size=(37,), activation=name, out_activation=name)
    tensors = draw(case, seed)
    tensors[where][0][3] = value
    check_nonfinite(case, tensors, torch.float32)
