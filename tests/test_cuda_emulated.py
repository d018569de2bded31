"""The kernels of the ``cuda`` backend on the emulation of CUDA, against the float64 reference."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import emulated_build
import pytest
import torch
from opchecked import opchecked
from operator_calls import OPERATORS, wrong_arguments
from reference_cases import (
    ACTIVATION_NAMES,
    TRAIN_CONVS,
    ConvCase,
    LinearCase,
    random_conv,
    random_linear,
    smooth,
)
from reference_checks import (
    check_against_reference,
    check_nonfinite,
    largest,
    named_cases,
    named_cases_at_low_precision,
)
from reference_loop import loop
from reference_runs import (
    conv2d,
    converted,
    draw,
    laid_out,
    linear,
    outputs_and_gradients,
    roundings,
    unit_conv2d,
    unit_conv2d_train,
    unit_conv2d_train_with_stats,
    unit_linear,
)
from tolerance import assert_near, tolerance

from bunit_kernels import backend

if emulated_build.why_no_kernels() is not None:
    pytest.skip(emulated_build.why_no_kernels(), allow_module_level=True)

from cuda_emulation import NAMESPACE, emulated_cuda, emulator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CONVS = (conv2d, unit_conv2d, unit_conv2d_train)
of_every_conv = pytest.mark.parametrize("op", CONVS, ids=lambda f: f.__name__)


@pytest.fixture(autouse=True)
def cuda():
    with emulated_cuda():
        yield


@pytest.fixture
def unwritten_is_nan():
    """PyTorch fills new tensors with NaN: what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@named_cases
def test_outputs_and_gradients(op, case, seed, unwritten_is_nan):
    check_against_reference(op, case, torch.float32, seed)


@named_cases_at_low_precision
def test_outputs_and_gradients_at_low_precision(op, case, dtype, seed):
    check_against_reference(op, smooth(case), dtype, seed)


#: What takes other ways through the kernels than most: several tiles a block on a small device,
#: images of dense 16 bytes, units or reaches too large for shared memory.
SPECIAL = (
    ConvCase("2-4-2", 4, size=(3, 8, 8), residual="relu"),
    ConvCase("2-4-2", 4, size=(3, 8, 8), layout="channels_last", grad_layout="channels_last"),
    ConvCase("2-4-8", 2, size=(2, 9, 7), layout="channels_last", grad_layout="channels_last"),
    ConvCase("1-2-3", 11, size=(4, 3, 3), layout="channels_last", grad_layout="channels_last"),
    ConvCase(("4-8-4", "2-1-3:k5"), size=(9, 17, 13), residual="identity"),
    ConvCase("1-2-1", 1, size=(3, 70, 37), kernel_size=5, dilation=2),
    ConvCase("8-16-8", 1, size=(9, 9, 11), layout="channels_last", residual="relu"),
    ConvCase("2-4-3", 2, size=(9, 21, 19), stride=2),
    ConvCase("3-6-5", 1, size=(4, 15, 13), kernel_size=2, padding=1),
    ConvCase("2-48-48", 1, size=(12, 3, 3)),
    ConvCase("2-2-4", 2, size=(12, 4, 4), dilation=40),
    ConvCase("2-2-4", 2, size=(12, 4, 4), dilation=60),
)


@pytest.mark.parametrize("processors", ["1", "132"])
@pytest.mark.parametrize("case", SPECIAL, ids=str)
def test_several_tiles_a_block_and_wide_units(case, processors, seed, monkeypatch):
    monkeypatch.setenv("BUNIT_EMULATION_PROCESSORS", processors)
    case = replace(case, bias=False)
    check_against_reference(unit_conv2d_train, case, torch.float32, seed)
    check_against_reference(unit_conv2d_train, smooth(case), torch.bfloat16, seed)


@pytest.mark.parametrize("units", ["4-9", "10-3:k5", "24-20", "2-4"])
@pytest.mark.parametrize("stride", [1, 2])
def test_weight_gradients_of_several_tiles_a_block(units, stride, seed, monkeypatch):
    monkeypatch.setenv("BUNIT_EMULATION_PROCESSORS", "1")
    case = ConvCase((units, "1-1"), size=(7, 24, 21), stride=stride)
    check_against_reference(conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("units", [("2-3", "1-2:k5"), "24-20"])
def test_weight_gradients_of_taps_that_reach_far(units, stride, seed):
    """One window of all taps would not fit shared memory."""
    case = ConvCase(units, size=(2, 66, 5), dilation=60, stride=stride)
    check_against_reference(conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("index", range(15))
@of_every_conv
def test_random_convolutions(op, index, seed, unwritten_is_nan):
    numbers = random.Random(seed)
    case = random_conv(numbers, depth=1 if op is conv2d else None)
    if op is conv2d:
        case = replace(case, residual=None)
    if op is unit_conv2d_train:  # few different values a channel may be all but the same
        case = replace(case, size=(12, *case.size[1:]))
        case = replace(case, layout="sliced") if case.layout == "expanded" else case
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize("index", range(40))
@pytest.mark.parametrize("op", [linear, unit_linear], ids=lambda f: f.__name__)
def test_random_linear_units(op, index, seed, unwritten_is_nan):
    case = random_linear(random.Random(seed), depth=1 if op is linear else None)
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_cover_their_whole_range(name, dtype, seed):
    x = torch.linspace(-30, 30, 2 * 4 * 61, dtype=torch.float64).view(2, 4, 1, 61)
    case = ConvCase("1-1", 4, size=(2, 1, 61), kernel_size=1, out_activation=name, bias=False)
    tensors = {**draw(case, seed), "x": [x], "weights": [torch.ones(4, 1, 1, 1).double()]}
    actual = conv2d(case, converted(tensors, dtype))
    expected = loop(case, converted(converted(tensors, dtype), torch.float64))
    # As for the other backends (test_functional.py), but that the device's exponential is good to
    # two units in the last place only.
    eps = torch.finfo(dtype).eps
    allowed = 4 * eps * expected.abs() + 4 * torch.finfo(torch.float32).eps * x.abs()
    assert ((actual.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", FORMATS)
@of_every_conv
def test_nan_and_infinity_travel(op, layout, value, seed):
    """One pixel of one image: where it reaches, and only there, the output is not finite."""
    case = ConvCase(
        ("2-3", "1-2") if op is conv2d else ("2-3-2", "1-2-1"), size=(3, 9, 11), layout=layout,
        activation="identity", out_activation="identity",
    )  # fmt: skip
    norms = op is unit_conv2d_train
    tensors = converted(draw(case, seed, norms=norms), torch.float32)
    tensors["x"] = [tensors["x"][0].clone()]
    tensors["x"][0][1, 1, 4, 5] = value
    expected = loop(case, converted(tensors, torch.float64))
    actual = op(case, tensors)
    assert torch.equal(actual.isfinite(), expected.isfinite())
    if not norms:
        share = tolerance(torch.float32, case.longest_sum, roundings(case))
        assert_near(actual, expected, share)


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "grad", "weights"])
def test_nan_and_infinity_travel_through_linear_units(where, value, name, seed):
    case = LinearCase(("4-8-4", "1-2-1") * 2, size=(37,), activation=name, out_activation=name)
    tensors = draw(case, seed)
    tensors[where][0][3] = value
    check_nonfinite(case, tensors, torch.float32)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("units", [("2-4-2",) * 3, ("1-3-1",) * 2, ("2-4-2", "1-2-3"), ("2-1-2",)])
@pytest.mark.parametrize("op", [unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_memory_format_is_kept(op, units, layout, seed):
    case = ConvCase(units, layout=layout, residual="relu")
    y = op(case, converted(draw(case, seed, norms=op is unit_conv2d_train), torch.float32))
    assert y.is_contiguous(memory_format=FORMATS[layout])


@of_every_conv
def test_parameters_may_have_any_strides(op, seed):
    case = ConvCase("2-4" if op is conv2d else "2-4-2", 3)
    tensors = converted(draw(case, seed, norms=op is unit_conv2d_train), torch.float32)
    expected = outputs_and_gradients(op, case, tensors)
    for layout in ("channels_last", "transposed", "sliced"):
        moved = {n: [laid_out(t, layout) for t in ts] for n, ts in tensors.items() if n != "x"}
        actual = outputs_and_gradients(op, case, {**moved, "x": tensors["x"]})
        for name, value in expected.items():
            assert_near(actual[name], value, tolerance(torch.float32, 200, 10), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in TRAIN_CONVS if len(str(c)) % 3 == 0], ids=str)
def test_batch_statistics(case, dtype, seed):
    tensors = converted(draw(case, seed, norms=True), dtype)
    _, actual = unit_conv2d_train_with_stats(case, tensors)
    with backend("reference"):
        _, expected = unit_conv2d_train_with_stats(case, converted(tensors, torch.float64))
    share = tolerance(dtype, case.longest_sum, roundings(case))
    for mine, theirs in zip(actual, expected, strict=True):
        assert_near(mine.mean, theirs.mean, share, "mean", largest(theirs.var.sqrt()))
        assert_near(mine.var, theirs.var, 2 * share, "variance, a square")


def test_variance_of_values_far_from_zero(seed):
    """A sum of squares minus a squared mean would leave nothing of it in float32."""
    case = ConvCase("1-1-1", 4, size=(4, 16, 16), kernel_size=1, bias=False)
    tensors = converted(draw(case, seed, norms=True), torch.float32)
    tensors["x"] = [tensors["x"][0] + 4000]
    tensors["weights"] = [torch.ones_like(w) for w in tensors["weights"]]
    _, stats = unit_conv2d_train_with_stats(case, tensors)
    expected = tensors["x"][0].double().var((0, 2, 3))
    assert_near(stats[0].var, expected, 1e-4)


def test_gammas_and_betas_may_be_float32_beside_bfloat16(seed):
    case = smooth(ConvCase("2-4-2", 3))
    tensors = draw(case, seed, norms=True)
    rounded = converted(tensors, torch.bfloat16)
    norms = {name: converted(tensors, torch.float32)[name] for name in ("gammas", "betas")}
    actual = outputs_and_gradients(unit_conv2d_train, case, rounded | norms)
    expected = outputs_and_gradients(loop, case, converted(rounded | norms, torch.float64))
    share = tolerance(torch.bfloat16, case.longest_sum, roundings(case))
    for name, value in expected.items():
        assert_near(actual[name], value, share, name)


HYBRID = ("1-2-1", "2-1-2", "3-2-1", "1-2-1", "2-4-2", "5-7-3:k5")


def test_hybrid_layer_is_one_launch(seed):
    case = ConvCase(HYBRID, size=(2, 9, 9), residual="relu")
    tensors = converted(draw(case, seed), torch.float32)
    with emulator().launches() as names:
        unit_conv2d(case, tensors)
    assert len(names) == 1, names


@pytest.mark.parametrize("units", [("4-8-4",) * 9, ("1-2-1", "4-8-4", "2-5-3") * 2])
def test_linear_units_go_back_in_two_launches(units, seed):
    """One through all levels of all units, and one that adds up what its blocks found."""
    case = LinearCase(units, size=(70,))
    tensors = converted(draw(case, seed), torch.float32)
    with emulator().launches() as names:
        outputs_and_gradients(unit_linear, case, tensors)
    forward, backward, total = names
    assert "unit_forward" in forward
    assert "unit_linear_backward" in backward and "add_parts" in total


@pytest.mark.parametrize(
    "case",
    [
        LinearCase(("2-3-1", "1-2-2"), size=(4700,)),  # several tiles a block
        LinearCase("1-2-1", 65, size=(300,)),  # several groups of units
        LinearCase("1-2-1", 520, size=(300,)),  # tiles of many rows, as there are many groups
        LinearCase(("1-1", "2-1") * 130, size=(33,)),  # more runs than a launch takes
        LinearCase("16-32-16", 3, size=(70,)),
        LinearCase("3-40-2-5", 3, size=(70,), bias=False),
    ],
    ids=str,
)
def test_linear_units_of_many_rows_and_kinds(case, seed):
    case = smooth(case)
    tensors = converted(draw(case, seed, comparable=False), torch.float32)
    actual = outputs_and_gradients(unit_linear, case, tensors)
    with backend("torch"):
        expected = outputs_and_gradients(unit_linear, case, converted(tensors, torch.float64))
    share = tolerance(torch.float32, case.longest_sum, roundings(case))
    for name, value in expected.items():
        assert_near(actual[name], value, share, name)


def test_launches_of_a_training_step(seed):
    """A level forward: its convolution, its statistics; at the end the last norm. Backward: sums
    for the last norm in two launches; a level: both its gradients and the sums for the norm before
    it, in two."""
    case = ConvCase(HYBRID, size=(3, 9, 9), residual="relu", bias=False)
    tensors = converted(draw(case, seed, norms=True), torch.float32)
    with emulator().launches() as forward:
        unit_conv2d_train(case, tensors)
    with emulator().launches() as both:
        outputs_and_gradients(unit_conv2d_train, case, tensors)
    assert len(forward) == 2 * 2 + 1, forward
    assert len(both) - len(forward) == 2 + 2 * 2, both


@of_every_conv
def test_nothing_is_allocated_twice(op, seed):
    """Work lists are built once for a layer and a device."""
    case = ConvCase(("2-4", "1-3:k5") if op is conv2d else HYBRID, size=(4, 9, 9))
    tensors = converted(draw(case, seed, norms=op is unit_conv2d_train), torch.float32)
    outputs_and_gradients(op, case, tensors)
    before = emulator().allocations
    outputs_and_gradients(op, case, tensors)
    assert emulator().allocations == before


OPCHECKED = (
    (conv2d, ConvCase("2-4", 3)),
    (conv2d, ConvCase(("1-2", "2-1:k5"), stride=2, size=(2, 9, 9), layout="channels_last")),
    (linear, LinearCase("4-8", 3)),
    (unit_conv2d, ConvCase("2-4-2", 3, residual="relu", layout="channels_last")),
    (unit_linear, LinearCase("4-8-4", 3)),
    (unit_linear, LinearCase(("64-64-64", "1-2-1"), bias=False)),
    (unit_conv2d_train, ConvCase("2-4-2", 3, residual="relu")),
    (unit_conv2d_train, ConvCase("2-4-2", 3, layout="channels_last", stride=2, size=(3, 9, 9))),
)


@pytest.mark.parametrize(
    ("op", "case"), OPCHECKED, ids=[f"{op.__name__}-{case}" for op, case in OPCHECKED]
)
def test_fake_kernels_tell_shapes_strides_and_dtypes(op, case, seed):
    """Every operator called on the way, forward and backward, passes opcheck."""
    tensors = converted(draw(case, seed, norms=op is unit_conv2d_train), torch.float32)
    with opchecked(NAMESPACE):
        outputs_and_gradients(op, case, tensors)


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from cuda_emulation import emulated_cuda
from reference_cases import ConvCase, LinearCase
from reference_runs import *
results = []
with emulated_cuda():
    for op, case in (
        (conv2d, ConvCase(("2-4", "3-1:k5"), size=(2, 9, 13))),
        (unit_conv2d, ConvCase(("2-4-2", "1-2-1"), size=(3, 35, 33), residual="relu")),
        (unit_conv2d_train, ConvCase("2-4-2", 5, size=(3, 17, 13), residual="relu")),
        (unit_conv2d_train, ConvCase("4-8-4", 2, size=(3, 9, 7), layout="channels_last")),
        (linear, LinearCase("4-8", 5, size=(33,))),
        (unit_linear, LinearCase(("4-8-4", "1-2-1"), size=(33,))),
        (unit_linear, LinearCase("2-3-2", 40, size=(130,))),
    ):
        tensors = draw(case, norms=op is unit_conv2d_train, comparable=False)
        results += outputs_and_gradients(op, case, converted(tensors, torch.float32)).values()
torch.save(results, sys.argv[2])
"""


def test_results_do_not_depend_on_the_order_of_threads_and_blocks(tmp_path):
    """To the last bit, in every order: no race, and every reduction in a fixed order."""
    emulator()  # built
    found = []
    for order in ("", "reverse", "1", "2"):
        path = tmp_path / f"order{order}.pt"
        environment = {**os.environ, "BUNIT_EMULATION_ORDER": order}
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)]
        subprocess.run(command, check=True, env=environment)
        found.append(torch.load(path))
    for other in found[1:]:
        assert len(other) == len(found[0])
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPERATORS)
def test_wrong_arguments_are_refused(name):
    """As on the CPU (tests/test_operator_calls.py), by the same checks."""
    for what, args in wrong_arguments(name, recompute=False).items():
        with pytest.raises(RuntimeError, match=r"[a-z]+(\[\d\])?: "):
            getattr(getattr(torch.ops, NAMESPACE), name)(*args)
            raise AssertionError(f"{what} was taken")
