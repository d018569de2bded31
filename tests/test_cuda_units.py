"""Whole units in one launch of the ``cuda`` backend, on the emulation of CUDA: the kinds with
compile-time code (csrc/cuda/fixed_widths.h), and layers of many runs of units."""

from __future__ import annotations

import itertools
import random
import subprocess

import emulated_build
import pytest
import torch
from reference_cases import ConvCase, LinearCase
from reference_loop import loop
from reference_runs import (
    conv2d,
    converted,
    draw,
    outputs_and_gradients,
    roundings,
    unit_conv2d,
    unit_linear,
)
from tolerance import assert_near, tolerance

from bunit_kernels import backend

if emulated_build.why_no_kernels() is not None:
    pytest.skip(emulated_build.why_no_kernels(), allow_module_level=True)

from cuda_emulation import emulated_cuda, emulator

POOL = ("1-2-1", "1-2-2", "1-2-3", "2-1-2", "2-1-1", "3-2-1")
FIXED = (*POOL, "2-4-2", "2-4-4", "4-8-4", "8-16-8")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Odd sizes and a batch of several tiles of images with a remainder; more than one tile an image;
#: rows that are read and written several columns at a time; less than one thread's patch.
SIZES = ((19, 7, 9), (1, 67, 66), (3, 12, 16), (2, 3, 1))


@pytest.fixture(autouse=True)
def cuda():
    """New tensors hold NaN: what a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    with emulated_cuda():
        yield
    torch.use_deterministic_algorithms(False)


def of_torch(op, case, tensors):
    """What the loop gives, which for a thousand units takes half a minute."""
    with backend("torch"):
        return op(case, tensors)


def of_loop(op, case, tensors):
    return loop(case, tensors)


def check_output(op, case, dtype=torch.float32, reference=of_loop):
    """Values too many for none to be near a kink, which an output does not mind."""
    tensors = converted(draw(case, comparable=False), dtype)
    with torch.no_grad():
        with emulator().launches() as names:
            actual = op(case, tensors)
        expected = reference(op, case, converted(tensors, torch.float64))
    assert_near(actual, expected, tolerance(dtype, case.longest_sum, roundings(case)), str(case))
    return names


@pytest.mark.parametrize("widths", FIXED)
def test_listed_widths_have_compile_time_code(widths):
    source = emulated_build.ROOT / "tests" / "emulation" / "fixed_code.cpp"
    program = emulated_build.program("fixed_code", [source], emulated_build.PLAIN)
    for numbers, expected in ((widths, "1\n"), (widths.replace("-", "-3", 1), "0\n")):
        done = subprocess.run([program, *numbers.split("-")], capture_output=True, text=True)
        assert done.stdout == expected


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("widths", FIXED)
def test_compile_time_widths(widths, stride, dtype, layout):
    """Each size with another of: biases or none, a residual or none, activations."""
    numbers = random.Random(f"{widths} {stride} {dtype} {layout}")
    wide = int(widths[0]) >= 4
    for size in SIZES if not wide else ((3, 9, 7), (2, 3, 1)):
        case = ConvCase(
            widths, 1 if wide or size[1] > 60 else 5, size=size, stride=stride, layout=layout,
            activation=numbers.choice(("relu", "relu", "silu", "identity")),
            out_activation=numbers.choice(("relu", "relu", "gelu", "identity")),
            bias=numbers.random() < 0.5, grad_layout=layout,
            residual=numbers.choice((None, "relu", "identity")),
        )  # fmt: skip
        assert len(check_output(unit_conv2d, case, dtype)) == 1


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_strides(layout):
    for residual_layout in ("contiguous", "channels_last", layout):
        case = ConvCase(
            "2-4-2", 3, size=(3, 8, 12), layout=layout, grad_layout=residual_layout,
            residual="relu",
        )  # fmt: skip
        check_output(unit_conv2d, case)


@pytest.mark.parametrize("offset", [1, 2])
def test_rows_that_are_not_aligned(offset):
    case = ConvCase("2-4-2", 2, size=(2, 8, 12), residual="relu")
    tensors = converted(draw(case, comparable=False), torch.float32)
    expected = loop(case, converted(tensors, torch.float64))
    for name in ("x", "residual"):
        t = tensors[name][0]
        moved = torch.empty(t.numel() + offset)[offset:].view(t.shape)
        tensors[name] = [moved.copy_(t)]
    actual = unit_conv2d(case, tensors)
    assert_near(actual, expected, tolerance(torch.float32, case.longest_sum, roundings(case)))


@pytest.mark.parametrize("padding", [0, 2, 3])
def test_other_paddings(padding):
    for stride in (1, 2):
        check_output(
            unit_conv2d, ConvCase("2-4-2", 2, size=(2, 11, 9), padding=padding, stride=stride)
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_listed_and_unlisted_kinds_are_one_launch(layout):
    units = ("1-2-1",) * 3 + ("2-3-2", "2-4-2:k5") + ("2-4-2",) * 9 + ("3-2-1", "5-7-3", "1-1-1")
    case = ConvCase(units, size=(3, 17, 18), layout=layout, residual="relu")
    assert len(check_output(unit_conv2d, case)) == 1


@pytest.mark.parametrize("units", [("3-4-2", 7), ("2-3-3-1:k5", 9), ("9-2-1", 3)])
def test_general_units_side_by_side_in_channels_last(units):
    for dtype in (torch.float32, torch.bfloat16):
        case = ConvCase(*units, size=(3, 9, 7), layout="channels_last", residual="relu")
        check_output(unit_conv2d, case, dtype)


def random_units(count, seed=0):
    """Units of the paper's pool of which no two neighbours are equal: every unit a run."""
    numbers = random.Random(seed)
    units = [numbers.choice(POOL)]
    while len(units) < count:
        units.append(numbers.choice([u for u in POOL if u != units[-1]]))
    return tuple(units)


def test_256_runs_are_one_launch_of_every_kernel():
    units = random_units(256)
    names = check_output(unit_conv2d, ConvCase(units, size=(2, 4, 5)), reference=of_torch)
    assert len(names) == 1, names
    level = ConvCase(tuple(u[:3] for u in random_units(256)), size=(1, 2, 2))
    tensors = converted(draw(level, comparable=False), torch.float32)
    with emulator().launches() as names:
        outputs_and_gradients(conv2d, level, tensors)
    for kernel in ("unit_forward", "level_conv", "level_grad_weight"):
        assert sum(kernel in name for name in names) == 1, names


def test_1000_runs():
    case = ConvCase(random_units(1000), size=(1, 3, 4))
    names = check_output(unit_conv2d, case, reference=of_torch)
    assert 1 < len(names) <= 4


def test_gradients_of_more_runs_than_a_launch_holds():
    levels = tuple(itertools.islice(itertools.cycle(("1-2", "2-1", "1-1")), 300))
    case = ConvCase(levels, size=(1, 1, 2), out_activation="identity")
    tensors = converted(draw(case, comparable=False), torch.float32)
    actual = outputs_and_gradients(conv2d, case, tensors)
    with backend("torch"):
        expected = outputs_and_gradients(conv2d, case, converted(tensors, torch.float64))
    for name, value in expected.items():
        assert_near(actual[name], value, tolerance(torch.float32, case.longest_sum, 4), name)


def test_more_units_than_a_run_holds():
    case = ConvCase("1-1-1", 500, size=(1, 3, 2))
    assert len(check_output(unit_conv2d, case, reference=of_torch)) == 1
    case = ConvCase("1-2-1", 251, size=(1, 1, 2), layout="channels_last")
    check_output(unit_conv2d, case, reference=of_torch)


def test_more_kinds_than_a_launch_holds():
    units = tuple(f"{a}-{b}-{c}" for a in (1, 2, 3) for b in (1, 2, 4) for c in (1, 2, 3)) * 2
    names = check_output(unit_conv2d, ConvCase(units, size=(1, 3, 3)))
    assert 1 < len(names) <= 6


def test_more_layers_than_are_remembered():
    """Each for the first time, and all of them again."""
    for _ in range(2):
        for count in range(1, 133):
            check_output(unit_linear, LinearCase("1-1", count, size=(1,)), reference=of_torch)
