"""What makes a stacked layer a stack: units know nothing of one another, their order is that of
their channels, and a single one is an ordinary chain of PyTorch's modules."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from itertools import pairwise, product

import emulated_build
import pytest
import torch
from module_cases import gradients_by_unit, lived
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import StackedConv2d, StackedLinear, backend, backends

NAN = float("nan")

#: Kinds that come back after others, next to each other, and once; wide ones beside narrow ones.
CONV_LAYERS = {
    "uniform": ("2-4-2", {"num_units": 5}),
    "hybrid": (["2-4-2", "1-2-3:k5", "2-4-2", "2-4-2", "3-1-2:k1"], {}),
    "strided": (["1-2-1", "1-2-1", "2-1-2", "1-2-1"], {"stride": 2, "activation": "silu"}),
    "wide": (["16-16-16", "1-2-1", "17-3-20"], {}),
    "one level": (["2-4", "2-4", "1-3", "2-4"], {}),
    "no norm": (["2-4-2", "1-2-3", "2-4-2"], {"norm": None, "out_activation": "gelu"}),
}
LINEAR_LAYERS = {
    "uniform": ("4-8-4", {"num_units": 5}),
    "hybrid": (["4-8-4", "1-2-3", "4-8-4", "4-8-4", "16-33-2"], {}),
    "norm": (["4-8-4", "1-2-3", "4-8-4"], {"norm": "batch", "activation": "silu"}),
    "one level": (["4-8", "1-2", "4-8"], {}),
}
LAYERS = [(StackedConv2d, name) for name in CONV_LAYERS]
LAYERS += [(StackedLinear, name) for name in LINEAR_LAYERS]
every_layer = pytest.mark.parametrize(
    ("kind", "name"), LAYERS, ids=[f"{kind.__name__}-{name}" for kind, name in LAYERS]
)
PLACES = ("input", "gradient", "first weight", "last weight")
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(params=[*(name for name in backends.available("cpu") if name != "triton"), "cuda"])
def any_backend(request):
    """Each backend of CPU tensors, emulated CUDA among them. Interpreted Triton takes seconds a
    step, and runs a few of the checks, at the end of this file."""
    with ExitStack() as stack:
        if request.param == "cuda":
            if reason := emulated_build.why_no_kernels():
                pytest.skip(reason)
            from cuda_emulation import emulated_cuda

            stack.enter_context(emulated_cuda())
        else:
            stack.enter_context(backend(request.param))
        yield request.param


def make_layer(kind, name):
    units, options = (CONV_LAYERS if kind is StackedConv2d else LINEAR_LAYERS)[name]
    # ReLU may hide what comes behind it.
    leaky = {"activation": "leaky_relu", "out_activation": "leaky_relu"}
    return lived(kind(units, **leaky | options))


def make_input(layer):
    sides = (5, 6) if isinstance(layer, StackedConv2d) else ()
    return torch.randn(4, layer.in_channels, *sides)


def by_unit(layer, x, grad):
    """One step's results, a dict of tensors for each unit: its output, the gradients of its input
    and parameters, and its running statistics. The layer stays as it is."""
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    first, last = layer.layout.levels[0], layer.layout.levels[-1]
    parts = {
        "output": y.detach().split(last.out_widths, 1),
        "grad of x": x.grad.split(first.in_widths, 1),
    }
    for i, level in enumerate(layer.layout.levels):
        parts[f"grad of weights[{i}]"] = level.unpack(layer.weights[i].grad)
        channels = {} if layer.biases is None else {f"grad of biases[{i}]": layer.biases[i].grad}
        if layer.norms is not None:
            norm = layer.norms[i]
            channels[f"grad of gammas[{i}]"] = norm.weight.grad
            channels[f"grad of betas[{i}]"] = norm.bias.grad
            channels[f"running_mean of norms[{i}]"] = norm.running_mean
            channels[f"running_var of norms[{i}]"] = norm.running_var
        parts |= {what: values.split(level.out_widths) for what, values in channels.items()}
    units = range(len(layer.units))
    return [{what: values[u] for what, values in parts.items()} for u in units]


def spoil(layer, x, grad, where, unit, value):
    """Copies of all three in which an image of ``unit``, or a row of its weight, is ``value``."""
    layer, x, grad = copy.deepcopy(layer), x.clone(), grad.clone()
    first, last = layer.layout.levels[0], layer.layout.levels[-1]
    target = {
        "input": lambda: x.split(first.in_widths, 1)[unit],
        "gradient": lambda: grad.split(last.out_widths, 1)[unit],
        "first weight": lambda: first.unpack(layer.weights[0].data)[unit],
        "last weight": lambda: last.unpack(layer.weights[-1].data)[unit],
    }[where]()
    target[target.shape[0] // 2] = value
    return layer, x, grad


@pytest.mark.parametrize("where", PLACES)
@both_modes
@every_layer
def test_no_unit_knows_of_another(kind, name, training, where, any_backend):
    check_independence(kind, name, training, where, 7.0, NAN)


def check_independence(kind, name, training, where, *values):
    """Whatever is put into one unit, all results of all others keep their bits."""
    layer = make_layer(kind, name).train(training)
    x = make_input(layer)
    grad = torch.randn_like(copy.deepcopy(layer)(x))
    expected = by_unit(layer, x, grad)
    for spoilt, value in product(sorted({0, 1, len(layer.units) - 1}), values):
        actual = by_unit(*spoil(layer, x, grad, where, spoilt, value))
        for unit, (mine, before) in enumerate(zip(actual, expected, strict=True)):
            same = {what: torch.equal(mine[what], before[what]) for what in before}
            if unit == spoilt:
                assert not all(same.values()), "nothing was spoilt"
            else:
                assert all(same.values()), f"{value} in unit {spoilt} changes unit {unit}: {same}"


@both_modes
@every_layer
def test_order_of_units_is_that_of_their_channels(kind, name, training, any_backend):
    check_order(kind, name, training)


def check_order(kind, name, training):
    layer = make_layer(kind, name).train(training)
    count = len(layer.units)
    order = [(3 * i + 1) % count if count % 3 else count - 1 - i for i in range(count)]
    units, x = layer.to_units(), make_input(layer)
    moved = kind.from_units([units[i] for i in order])
    parts = x.split(layer.layout.levels[0].in_widths, 1)
    grad = torch.randn_like(copy.deepcopy(layer)(x))
    grads = grad.split(layer.layout.levels[-1].out_widths, 1)
    expected = by_unit(layer, x, grad)
    actual = by_unit(
        moved, torch.cat([parts[i] for i in order], 1), torch.cat([grads[i] for i in order], 1)
    )
    share = tolerance(torch.float32, terms=17 * 9, roundings=20)
    for place, unit in enumerate(order):
        # A gradient through batch statistics may be what is left of larger ones.
        scale = max(value.abs().max().item() for value in expected[unit].values())
        for what, value in expected[unit].items():
            assert_near(actual[place][what], value, share, f"{what} of unit {unit}", scale)


# --- one unit ------------------------------------------------------------------------------------


def conv_chain(widths, norm, stride=1):
    """What a user would write for one unit of 3x3 convolutions."""
    modules = []
    for c_in, c_out in pairwise(widths):
        first = not modules
        modules.append(nn.Conv2d(c_in, c_out, 3, stride if first else 1, padding=1, bias=not norm))
        modules += [nn.BatchNorm2d(c_out), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*modules)


def linear_chain(widths, norm):
    modules = []
    for c_in, c_out in pairwise(widths):
        modules.append(nn.Linear(c_in, c_out))
        modules += [nn.BatchNorm1d(c_out), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*modules)


CHAINS = {
    "2-4-2": lambda: (conv_chain((2, 4, 2), norm=True), (6, 2, 7, 5)),
    "3-2-1 with stride": lambda: (conv_chain((3, 2, 1), norm=True, stride=2), (6, 3, 7, 5)),
    "1-2-3-2 without norm": lambda: (conv_chain((1, 2, 3, 2), norm=False), (6, 1, 7, 5)),
    "16-16-16": lambda: (conv_chain((16, 16, 16), norm=True), (4, 16, 5, 4)),
    "one level": lambda: (conv_chain((2, 4), norm=True), (6, 2, 7, 5)),
    "linear 4-8-4": lambda: (linear_chain((4, 8, 4), norm=False), (9, 4)),
    "linear 5-3 with norm": lambda: (linear_chain((5, 3), norm=True), (9, 5)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_one_unit_is_a_plain_sequential(name, any_backend):
    check_one_unit(name, torch.float32 if any_backend == "cuda" else torch.float64)


def check_one_unit(name, dtype):
    """Outputs, all gradients and running statistics of three training steps, then of eval mode."""
    chain, shape = CHAINS[name]()
    chain = chain.to(dtype)
    kind = StackedLinear if name.startswith("linear") else StackedConv2d
    layer = kind.from_units([chain])
    share = tolerance(dtype, terms=6 * 35, roundings=60)
    for step in range(4):
        if step == 3:
            chain.eval(), layer.eval()
        x = torch.randn(shape, dtype=dtype) + step
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        theirs, ours = chain(inputs[0]), layer(inputs[1])
        assert_near(ours, theirs, share, f"output of step {step}")
        grad = torch.randn_like(theirs)
        for module, y in ((chain, theirs), (layer, ours)):
            module.zero_grad()
            y.backward(grad)
        scale = max(p.grad.abs().max().item() for p in chain.parameters())
        assert_near(inputs[1].grad, inputs[0].grad, share, f"grad of x of step {step}", scale)
        for mine, parameter in zip(gradients_by_unit(layer), chain.parameters(), strict=True):
            assert_near(mine, parameter.grad, share, f"grad of step {step}", scale)
        for mine, buffer in zip(layer.to_units()[0].buffers(), chain.buffers(), strict=True):
            assert_near(mine, buffer, share, f"buffer of step {step}")


# --- the same under Triton's interpreter ---------------------------------------------------------


@pytest.fixture
def triton():
    if reason := backends.why_not("triton", "cpu"):
        pytest.skip(reason)
    with backend("triton"):
        yield


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "name", "where"),
    [
        (StackedConv2d, "strided", "input"),
        (StackedConv2d, "one level", "first weight"),
        (StackedLinear, "uniform", "input"),
        (StackedLinear, "one level", "first weight"),
    ],
)
def test_units_under_triton(kind, name, where, triton):
    check_independence(kind, name, True, where, NAN)
    check_order(kind, name, True)


@pytest.mark.parametrize("name", ["2-4-2", "linear 4-8-4"])
def test_one_unit_under_triton(name, triton):
    check_one_unit(name, torch.float32)
