"""The ``triton`` backend on a real device: what the ``cuda`` backend has to pass, of cases a share,
since each is compiled."""

from __future__ import annotations

import pytest
import torch
from reference_cases import ConvCase, LinearCase, smooth
from reference_checks import NAMED, check_against_reference
from reference_runs import conv2d, linear, outputs_and_gradients, unit_conv2d_train, unit_linear
from test_cuda_gpu import (  # noqa: F401  run under this file's backend too
    case_for,
    drawn,
    of_every_conv,
    pytestmark,
    test_autocast_and_folded_norms,
    test_compiled_layer,
    test_cuda_graph,
    test_linear_cases_of_many_rows,
    test_more_elements_than_32_bits_count,
    test_other_stream_than_the_default,
    test_results_are_the_same_every_time,
    test_sizes_of_real_layers,
    test_tensors_of_another_device_than_the_current,
)

from bunit_kernels import backend, backends

WIDE = (
    (conv2d, ConvCase("16-24", 2, size=(3, 19, 18))),
    (conv2d, ConvCase("32-16", 2, size=(3, 19, 18), stride=2, layout="channels_last")),
    (conv2d, ConvCase("24-72", 2, size=(3, 9, 18), dilation=2, layout="channels_last")),
    (unit_conv2d_train, ConvCase("16-32-32", 4, size=(4, 14, 14), layout="channels_last")),
    (linear, LinearCase("32-48", 3, size=(300,))),
    (unit_linear, LinearCase("16-64-16", 3, size=(300,))),
)
CASES = (*NAMED[::25], *WIDE)
cases = pytest.mark.parametrize(
    ("op", "case"), CASES, ids=[f"{op.__name__}-{case}" for op, case in CASES]
)


@pytest.fixture(autouse=True)
def triton():
    reason = backends.why_not("triton", "cuda", torch.float32)
    assert reason is None, f"there is a device, and the backend cannot run on it: {reason}"
    with backend("triton"):
        yield


@cases
def test_outputs_and_gradients(op, case, seed):
    check_against_reference(op, case, torch.float32, seed, "cuda")


@cases
def test_outputs_and_gradients_at_low_precision(op, case, seed):
    check_against_reference(op, smooth(case), torch.bfloat16, seed, "cuda")


@of_every_conv
def test_the_host_waits_for_the_device_the_first_time_alone(op):
    """Work lists are made and launches measured then."""
    case = case_for(op)
    tensors = drawn(op, case)
    outputs_and_gradients(op, case, tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs_and_gradients(op, case, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
