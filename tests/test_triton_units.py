"""Whole convolutional units of the ``triton`` backend under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from reference_cases import TRAIN_CONVS, UNIT_CONVS, smooth
from reference_checks import check_against_reference
from reference_runs import unit_conv2d, unit_conv2d_train

from bunit_kernels import backend


@pytest.fixture(autouse=True)
def triton():
    with backend("triton"):
        yield


def few(cases, most):
    """Those of a case of every kind that an interpreter goes through quickly."""
    def work(case):
        units = case.geometry.layout.num_units
        return units * case.kernel_size**2 * case.size[0] * case.size[1] * case.size[2]
    return sorted(cases, key=work)[:most]

@pytest.mark.parametrize("case", few(UNIT_CONVS, 40), ids=str)
def test_outputs_and_gradients(case, seed):
    check_against_reference(unit_conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("case", few(TRAIN_CONVS, 40), ids=str)
def test_training(case, seed):
    check_against_reference(unit_conv2d_train, case, torch.float32, seed)
