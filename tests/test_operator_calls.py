"""Operators called directly, past the checks in Python, as saved programs and C++ callers do."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from operator_calls import (
    OPERATORS,
    arguments,
    mismatched_calls,
    tensors_for,
    wrong_arguments,
)
from reference_cases import ConvCase
from torch._subclasses.fake_tensor import FakeTensorMode

from bunit_kernels.activations import ACTIVATIONS
from bunit_kernels.ops import _check

ops = torch.ops.bunit_kernels
MISMATCHED = mismatched_calls()

#: What a refusal says: the argument, what was expected of it, what it is.
NAMES_THE_ARGUMENT = (
    r"(x|grad|weights?(\[\d\])?|bias(es)?(\[\d\])?|gammas(\[\d\])?|betas(\[\d\])?"
    r"|pre_norms(\[\d\])?|stats|residual|weight_shape|input_size|units|stride|dilation|eps"
    r"|recompute|activation|out_activation|residual_activation): "
)


@pytest.mark.parametrize("name", OPERATORS)
def test_wrong_arguments_are_refused(name):
    for what, args in wrong_arguments(name).items():
        with pytest.raises(RuntimeError, match=NAMES_THE_ARGUMENT):
            getattr(ops, name)(*args)
            raise AssertionError(f"{what} was taken")


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_kernels_refuse_wrong_arguments(name):
    """Before a program is compiled or exported, and of tensors on the meta device."""
    for what, args in wrong_arguments(name).items():
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            pytest.raises(RuntimeError, match=NAMES_THE_ARGUMENT + "|common device"),
        ):
            getattr(ops, name)(*args)
            raise AssertionError(f"{what} was taken")


@pytest.mark.parametrize("name", MISMATCHED)
def test_what_does_not_fit_is_refused_before_it_is_read(name):
    with pytest.raises(RuntimeError, match=NAMES_THE_ARGUMENT):
        MISMATCHED[name]()


@pytest.mark.parametrize("name", [name for name in MISMATCHED if name != "memory"])
def test_fake_kernels_refuse_what_does_not_fit(name):
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        pytest.raises(RuntimeError, match=NAMES_THE_ARGUMENT),
    ):
        MISMATCHED[name]()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("units", "size", "stride", "dilation"),
    [
        ([1, 1, 0, 1, 1], (1, 1), _check.MAX_STRIDE, 1),
        ([1, 1, 0, 1, 1], (1, 1), 1, _check.MAX_KERNEL),
        ([1, 1, _check.MAX_KERNEL, 1, 1], (1, 1), 217, 1),
        ([_check.MAX_UNITS, 1, 0, 1, 1], (1, 1), 1, 1),
    ],
    ids=["stride", "dilation", "padding", "units"],
)
def test_limits_are_reached(units, size, stride, dilation, device):
    """One more is refused: ``wrong_arguments`` has it."""
    count = units[0]
    x = torch.ones(1, count, *size, device=device)
    weight = torch.ones(count, device=device)
    y = ops.stacked_conv2d(x, weight, None, units, stride, dilation, "identity")
    assert y.shape[1] == count and y.numel() >= count
    if device == "cpu":
        assert y.sum() == count


def test_a_level_of_several_kernels_that_give_one_size():
    """Strided, 2x2 kernels without padding and 3x3 kernels with it give the same."""
    units = [1, 2, 0, 1, 1, 1, 3, 1, 1, 1]
    x, weight = torch.randn(2, 2, 6, 6), torch.randn(4 + 9)
    y = ops.stacked_conv2d(x, weight, None, units, 2, 1, "identity")
    first = torch.nn.functional.conv2d(x[:, :1], weight[:4].view(1, 1, 2, 2), stride=2)
    second = torch.nn.functional.conv2d(x[:, 1:], weight[4:].view(1, 1, 3, 3), stride=2, padding=1)
    torch.testing.assert_close(y, torch.cat((first, second), 1))


def test_activations_have_one_list():
    """That of C++, whose numbers are their order, and that of Python."""
    assert set(ops.activation_names().split()) == set(ACTIVATIONS)


def test_checks_leave_sizes_open():
    """Export with open sizes puts no guard on them but those that the operator asks for."""
    case = ConvCase("2-4-2", 2, size=(2, 12, 12))
    args = arguments("stacked_unit_conv2d", case, tensors_for("stacked_unit_conv2d", case))

    class Run(torch.nn.Module):
        def forward(self, x):
            return ops.stacked_unit_conv2d(x, *args[1:])

    size = {i: torch.export.Dim(name, min=2) for i, name in ((0, "n"), (2, "h"), (3, "w"))}
    program = torch.export.export(Run(), (args[0],), dynamic_shapes=(size,))
    x = torch.randn(5, 4, 2, 31, dtype=torch.float64)
    torch.testing.assert_close(program.module()(x), Run()(x))


def test_100_000_units():
    """Time grows with the units, and not with their square: that would be minutes."""
    count, names = 100_000, ("relu", "identity")
    units, weights = [count, 1, 0, 1, 2, 1], [torch.ones(2 * count), torch.ones(2 * count)]
    norms = [torch.ones(2 * count), torch.ones(count)]
    x = torch.randn(2, count, 1, 1)
    y, pre_norms, stats = ops.stacked_unit_conv2d_train(
        x, weights, norms, norms, None, units, 1, 1, True, 1e-5, True, *names, "identity"
    )
    grad_x, _, _ = ops.stacked_unit_conv2d_train_backward(
        torch.ones_like(y), x, weights, norms, norms, pre_norms, stats, units, 1, 1, True, *names
    )
    assert grad_x.shape == x.shape and y.isfinite().all() and grad_x.isfinite().all()


def test_as_many_kinds_as_units():
    """The kind of each unit is looked up, not searched for among all."""
    shapes = list(itertools.product(range(1, 28), repeat=3))
    units = [value for shape in shapes for value in (1, *shape)]
    weights = [torch.ones(sum(s[i] * s[i + 1] for s in shapes)) for i in (0, 1)]
    x = torch.ones(1, sum(s[0] for s in shapes))
    y = ops.stacked_unit_linear(x, weights, [], units, "identity", "identity")
    expected = [float(s[0] * s[1]) for s in shapes for _ in range(s[2])]
    assert y.flatten().tolist() == expected


def test_fuzzed_calls():
    """A few: tests/fuzz/operators.py makes more, and tests/sanitize.py under a sanitizer."""
    program = Path(__file__).parent / "fuzz" / "operators.py"
    command = [sys.executable, str(program), "--calls", "0", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-100:] + done.stderr
    assert int(done.stdout.split()[-1]) > 10
