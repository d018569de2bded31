"""Convolutional levels of the ``triton`` backend under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from reference_cases import LEVEL_CONVS, ConvCase, smooth
from reference_checks import check_against_reference
from reference_runs import conv2d

from bunit_kernels import backend


@pytest.fixture(autouse=True)
def triton():
    with backend("triton"):
        yield


@pytest.mark.parametrize("case", LEVEL_CONVS, ids=str)
def test_outputs_and_gradients(case, seed):
    check_against_reference(conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", LEVEL_CONVS[::4], ids=str)
def test_at_low_precision(case, dtype, seed):
    check_against_reference(conv2d, smooth(case), dtype, seed)
