"""The ``cuda`` backend on a real device, against the reference loop in float64."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from reference_cases import ConvCase, LinearCase, random_conv, random_linear, smooth
from reference_checks import check_against_reference, named_cases
from reference_runs import (
    conv2d,
    converted,
    draw,
    linear,
    on_device,
    outputs_and_gradients,
    unit_conv2d,
    unit_conv2d_train,
    unit_linear,
)
from tolerance import assert_near, tolerance

from bunit_kernels import StackedConv2d, UnitSpec, backend, backends

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():  # at once: there are two thousand tests
    pytest.skip("no CUDA device", allow_module_level=True)

CONVS = (conv2d, unit_conv2d, unit_conv2d_train)
of_every_conv = pytest.mark.parametrize("op", CONVS, ids=lambda f: f.__name__)
HYBRID = ("1-2-1", "2-1-2", "3-2-1", "1-2-1", "2-4-2", "5-7-3:k5")


@pytest.fixture(autouse=True)
def cuda():
    reason = backends.why_not("cuda", "cuda", torch.float32)
    assert reason is None, f"there is a device, and the backend cannot run on it: {reason}"
    with backend("cuda"):
        yield


def case_for(op):
    if op is conv2d:
        return ConvCase(("2-4", "1-3:k5"), size=(4, 19, 35))
    return ConvCase(HYBRID, size=(4, 19, 35), residual="relu")


def drawn(op, case, dtype=torch.float32, comparable=True):
    tensors = draw(case, norms=op is unit_conv2d_train, comparable=comparable)
    return on_device(converted(tensors, dtype), "cuda")


@named_cases
def test_outputs_and_gradients(op, case, seed):
    check_against_reference(op, case, torch.float32, seed, "cuda")


@named_cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_outputs_and_gradients_at_low_precision(op, case, dtype, seed):
    check_against_reference(op, smooth(case), dtype, seed, "cuda")


@pytest.mark.parametrize("index", range(100))
@of_every_conv
def test_random_convolutions(op, index, seed):
    numbers = random.Random(seed)
    case = random_conv(numbers, depth=1 if op is conv2d else None)
    if op is conv2d:
        case = replace(case, residual=None)
    if op is unit_conv2d_train:  # few different values a channel may be all but the same
        case = replace(case, size=(12, *case.size[1:]))
        case = replace(case, layout="sliced") if case.layout == "expanded" else case
    check_against_reference(op, case, torch.float32, seed, "cuda")


@pytest.mark.parametrize("index", range(60))
@pytest.mark.parametrize("op", [linear, unit_linear], ids=lambda f: f.__name__)
def test_random_linear_units(op, index, seed):
    case = random_linear(random.Random(seed), depth=1 if op is linear else None)
    check_against_reference(op, case, torch.float32, seed, "cuda")


@pytest.mark.parametrize(
    ("op", "case"),
    [
        (unit_conv2d, ConvCase("2-4-2", 64, size=(32, 56, 56))),
        (unit_conv2d, ConvCase(("1-2-1", "2-1-2", "3-2-1") * 20, size=(16, 32, 32))),
        (unit_conv2d, ConvCase(("1-2-1", "2-1-2", "3-2-1") * 90, size=(16, 32, 32))),
        (unit_conv2d, ConvCase("2-4-2", 64, size=(32, 32, 32), layout="channels_last")),
        (unit_conv2d, ConvCase("2-4-4", 64, size=(32, 31, 33), stride=2)),
        (unit_conv2d_train, ConvCase("2-4-2", 64, size=(32, 32, 32), residual="identity")),
        (unit_conv2d_train, ConvCase("2-4-4", 64, size=(32, 32, 32), stride=2)),
    ],
    ids=lambda x: x.__name__ if callable(x) else str(x),
)
def test_sizes_of_real_layers(op, case):
    """Many blocks at once. Too many values for none to be near a kink: smooth activations."""
    case = smooth(case)
    tensors = drawn(op, case, comparable=False)
    actual = outputs_and_gradients(op, case, tensors)
    with backend("torch"):
        exact = {name: [t.double() for t in ts] for name, ts in tensors.items()}
        expected = outputs_and_gradients(op, case, exact)
    share = tolerance(torch.float32, case.longest_sum, 20)
    for name, value in expected.items():
        assert_near(actual[name], value, share, name)


@of_every_conv
def test_results_are_the_same_every_time(op):
    case = case_for(op)
    tensors = drawn(op, case)
    first = outputs_and_gradients(op, case, tensors)
    for _ in range(10):
        again = outputs_and_gradients(op, case, tensors)
        assert all(torch.equal(first[name], again[name]) for name in first)


@of_every_conv
def test_other_stream_than_the_default(op):
    """The kernels wait for what is before them in the stream that is current, and for no other."""
    case = case_for(op)
    tensors = drawn(op, case)
    expected = outputs_and_gradients(op, case, tensors)
    late = {name: [torch.empty_like(t) for t in ts] for name, ts in tensors.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, ts in tensors.items():
            for i, t in enumerate(ts):
                late[name][i].copy_(t)
        actual = outputs_and_gradients(op, case, late)
    stream.synchronize()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@of_every_conv
def test_cuda_graph(op):
    """Captured once, replayed with other values in the same memory."""
    case = case_for(op)
    tensors, other = drawn(op, case), draw(case, "other", norms=op is unit_conv2d_train)
    other = on_device(converted(other, torch.float32), "cuda")
    expected = outputs_and_gradients(op, case, other)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs_and_gradients(op, case, tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = outputs_and_gradients(op, case, tensors)
    for name, ts in tensors.items():
        for i, t in enumerate(ts):
            t.copy_(other[name][i])
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@of_every_conv
def test_the_host_never_waits_for_the_device(op):
    case = case_for(op)
    tensors = drawn(op, case)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs_and_gradients(op, case, tensors)  # the first call, work list and all
        outputs_and_gradients(op, case, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@of_every_conv
def test_tensors_of_another_device_than_the_current(op):
    case = case_for(op)
    tensors = drawn(op, case)
    expected = outputs_and_gradients(op, case, tensors)
    there = {name: [t.to("cuda:1") for t in ts] for name, ts in tensors.items()}
    actual = outputs_and_gradients(op, case, there)
    assert torch.cuda.current_device() == 0
    for name, value in expected.items():
        assert actual[name].device == torch.device("cuda:1")
        assert torch.equal(actual[name].to("cuda:0"), value), name


def test_more_elements_than_32_bits_count():
    """The last image of a tensor of more than 2^31 elements comes out as it does alone."""
    count = (1 << 31) // (128 * 64 * 64) + 3
    needed = 2 * 2 * count * 128 * 64 * 64 + (1 << 30)
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free memory on the device")
    layer = StackedConv2d("2-4-2", 64).cuda().bfloat16().eval()
    x = torch.zeros(count, 128, 64, 64, device="cuda", dtype=torch.bfloat16)
    x[-1].normal_()
    x[0].normal_()
    with torch.inference_mode():
        y = layer(x)
        assert torch.equal(y[-1:], layer(x[-1:]))
        assert torch.equal(y[:1], layer(x[:1]))


def test_autocast_and_folded_norms():
    """A hybrid layer trains under autocast; with its norms folded it gives what the loop gives."""
    torch.manual_seed(0)
    layer = StackedConv2d(UnitSpec.sample(20, seed=3)).cuda()
    x = torch.randn(8, layer.in_channels, 16, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        trained = layer(x)
    assert trained.dtype == torch.bfloat16
    trained.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    layer.eval()
    with torch.inference_mode():
        with backend("reference"):
            expected = layer(x)
        assert_near(layer(x), expected, tolerance(torch.float32, 200, 10))


def test_compiled_layer():
    layer = StackedConv2d("2-4-2", 8).cuda()
    x = torch.randn(4, 16, 9, 9, device="cuda", requires_grad=True)
    expected = layer(x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    actual = torch.compile(layer, fullgraph=True)(x)
    (actual_grad,) = torch.autograd.grad(actual.sum(), x)
    share = tolerance(torch.float32, 200, 10)
    assert_near(actual, expected, share)
    assert_near(actual_grad, expected_grad, share, scale=1.0)


def test_linear_cases_of_many_rows():
    case = smooth(LinearCase(("4-8-4", "1-2-1") * 32, size=(5000,)))
    tensors = drawn(unit_linear, case, comparable=False)
    actual = outputs_and_gradients(unit_linear, case, tensors)
    with backend("torch"):
        exact = {name: [t.double() for t in ts] for name, ts in tensors.items()}
        expected = outputs_and_gradients(unit_linear, case, exact)
    for name, value in expected.items():
        assert_near(actual[name], value, tolerance(torch.float32, case.longest_sum, 20), name)
