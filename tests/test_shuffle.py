"""Shuffled layers: the permutation, and that layers stay what they are in everything else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from module_cases import gradients_by_unit, image, lived, run_units
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import (
    StackedConv2d,
    StackedLinear,
    backend,
    bunitize,
    functional,
    fuse,
    models,
)
from bunit_kernels.shuffle import round_robin, shuffled, unshuffled

NEAR = tolerance(torch.float64, terms=1000, roundings=30)
WIDTHS = ((1,), (3,), (1, 1, 1), (2, 2), (3,) * 4, (1, 3, 2), (2, 1, 1, 4, 2), (4, 1))
UNITS = {"uniform": ["2-4-3"] * 4, "hybrid": ["2-4-3", "1-2-1", "3-2-4", "1-2-2"]}
uniform_and_hybrid = pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def conv(units, **options) -> StackedConv2d:
    return lived(StackedConv2d(units, **{"shuffle": True, "dtype": torch.float64, **options}))


def reordered(layer, y, dim=1):
    """Outputs of a loop in the order of the layer's, by the index that it tells."""
    return y.index_select(dim, torch.tensor(layer.layout.shuffle_index))


# --- the permutation -----------------------------------------------------------------------------


def test_round_robin_by_hand():
    assert round_robin((2, 2, 2)) == (0, 2, 4, 1, 3, 5)
    assert round_robin((1, 3, 2)) == (0, 1, 4, 2, 5, 3)
    assert round_robin((3,)) == (0, 1, 2)


@pytest.mark.parametrize(("units", "width"), [(2, 2), (3, 4), (5, 1)])
def test_units_of_equal_width_are_shuffled_as_shufflenet_does(units, width):
    """torch.nn.ChannelShuffle is ShuffleNet's, with as many groups as units."""
    y = torch.randn(2, units * width, 3, 4)
    assert torch.equal(shuffled(y, (width,) * units, 1), nn.ChannelShuffle(units)(y))
    order = round_robin((width,) * units)
    assert all(order[j * units + u] == u * width + j for u in range(units) for j in range(width))


@pytest.mark.parametrize("shape", [(2, 4, 5), (), (3,)], ids=["image", "vector", "rows"])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_shuffled_follows_the_order_and_unshuffled_undoes_it(widths, shape):
    channels = sum(widths)
    y = torch.randn(2, channels, 4, 5) if len(shape) == 3 else torch.randn(*shape, channels)
    dim = 1 if len(shape) == 3 else -1
    expected = y.index_select(dim, torch.tensor(round_robin(widths)))
    assert torch.equal(shuffled(y, widths, dim), expected)
    assert torch.equal(unshuffled(expected, widths, dim), y)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_images_keep_their_memory_format(widths):
    y = torch.randn(2, sum(widths), 4, 5).to(memory_format=torch.channels_last)
    for move in (shuffled, unshuffled):
        assert move(y, widths, 1).is_contiguous(memory_format=torch.channels_last)


# --- layers --------------------------------------------------------------------------------------


def assert_same_as_loop(layer, x, residual=None):
    """Output and gradients, with the residual in the order of the output."""
    layer.zero_grad()
    units, dim = layer.to_units(), 1 if x.dim() == 4 else -1
    x, x_loop = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = reordered(layer, run_units(units, x_loop, dim), dim)
    y = layer(x) if residual is None else layer(x, residual, "relu")
    expected = expected if residual is None else (expected + residual).relu()
    assert_near(y, expected, NEAR, "output")
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    assert_near(x.grad, x_loop.grad, NEAR, "grad of x")
    scale = max(p.grad.abs().max() for p in units.parameters())
    for mine, loops in zip(gradients_by_unit(layer), units.parameters(), strict=True):
        assert_near(mine, loops.grad, NEAR, "grad of a parameter", scale)
    for mine, loops in zip(layer.to_units().buffers(), units.buffers(), strict=True):
        assert_near(mine, loops, NEAR, "buffer")


@uniform_and_hybrid
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("mode", ["train", "eval", "one norm frozen", "no norm", "bias and norm"])
def test_conv_layer_is_its_loop_reordered(mode, residual, units, every_backend):
    options = {"no norm": {"norm": None}, "bias and norm": {"bias": True}}.get(mode, {})
    layer = conv(units, **options).train(mode != "eval")
    if mode == "one norm frozen":
        layer.norms[0].eval()
    x = image(layer)
    added = torch.randn(len(x), layer.out_channels, *x.shape[2:]).double() if residual else None
    assert_same_as_loop(layer, x, added)


@pytest.mark.parametrize("norm", [None, "batch"])
@modes
@uniform_and_hybrid
def test_linear_layer_is_its_loop_reordered(units, training, norm, every_backend):
    layer = lived(StackedLinear(units, shuffle=True, norm=norm, dtype=torch.float64))
    assert_same_as_loop(layer.train(training), torch.randn(7, layer.in_features).double())
    x = torch.randn(2, 3, layer.in_features).double()
    layer.eval()
    assert_near(layer(x).flatten(0, 1), layer(x.flatten(0, 1)), NEAR)


def test_one_level(every_backend):
    for units in (["2-3"] * 3, ["2-3", "1-1"]):
        assert_same_as_loop(layer := conv(units), image(layer))
        x = image(layer)
        y = functional.stacked_conv2d(x, layer.weights[0], units=units, shuffle=True)
        plain = functional.stacked_conv2d(x, layer.weights[0], units=units)
        assert_near(y, reordered(layer, plain), NEAR)


@modes
def test_two_layers_in_a_row(training, every_backend):
    """Every unit of the second sees channels of all units of the first."""
    smooth = {"num_units": 4, "activation": "silu", "out_activation": "silu"}
    first, second = conv("2-4-4", **smooth), conv("4-4-2", **smooth)
    both = nn.Sequential(first, second).train(training)
    units = first.to_units(), second.to_units()
    x = image(first).requires_grad_()
    between = reordered(first, run_units(units[0], x))
    expected = reordered(second, run_units(units[1], between))
    assert_near(both(x), expected, NEAR)
    (grad,) = torch.autograd.grad(both.eval()(x)[:, 0].sum(), x)
    assert all(part.abs().sum() > 0 for part in grad.split(2, 1))


def test_state_dicts_are_the_same_with_and_without():
    layer, plain = conv(UNITS["hybrid"]), conv(UNITS["hybrid"], shuffle=False)
    plain.load_state_dict(layer.state_dict())
    assert [*layer.state_dict()] == [*plain.state_dict()]
    x = image(layer)
    assert_near(layer.eval()(x), reordered(layer, plain.eval()(x)), NEAR)
    layer.load_state_dict(plain.to_units().state_dict())
    assert plain.layout.shuffle_index == tuple(range(plain.out_channels))


@pytest.mark.parametrize("kind", [StackedConv2d, StackedLinear])
def test_from_units_is_told(kind):
    layer = kind(UNITS["hybrid"], shuffle=True).eval()
    again = kind.from_units(layer.to_units(), shuffle=True)
    x = torch.randn(2, layer.in_channels, *((5, 6) if kind is StackedConv2d else ()))
    assert torch.equal(again(x), layer(x))
    assert again.shuffle and not kind.from_units(layer.to_units()).shuffle
    assert "shuffle" in repr(again) and "shuffle" not in repr(kind("2-4-2"))


@uniform_and_hybrid
def test_fused_copied_and_pickled(units, every_backend):
    layer = conv(units).eval()
    x = image(layer)
    for other in (fuse(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.shuffle
        assert_near(other(x), layer(x), NEAR)


@modes
@uniform_and_hybrid
def test_memory_format_is_kept(units, training, every_backend):
    layer = conv(units).train(training)
    x = image(layer).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y, copy.deepcopy(layer)(x.contiguous()), NEAR)


@modes
@uniform_and_hybrid
@pytest.mark.parametrize("which", ["torch", "cpp"])
def test_compiled_and_exported(which, units, training):
    torch._dynamo.reset()
    layer = conv(units, dtype=torch.float64).train(training)
    x, added = image(layer, batch=4), torch.randn(4, layer.out_channels, 8, 9).double()
    results = []
    with backend(which):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for run in (copy.deepcopy(layer), compiled):
            given = x.clone().requires_grad_()
            y = run(given, added, "relu")
            results.append((y, *torch.autograd.grad(y.square().sum(), given)))
        batch = torch.export.Dim("batch", min=2, max=64)
        shapes = {"x": {0: batch}, "residual": {0: batch}}
        program = torch.export.export(copy.deepcopy(layer), (x, added), dynamic_shapes=shapes)
        x, added = image(layer, batch=9), torch.randn(9, layer.out_channels, 8, 9).double()
        assert_near(program.module()(x, added), layer(x, added), NEAR)
    for eager, mine in zip(*results, strict=True):
        assert_near(mine, eager, NEAR)


def test_cpp_exports_one_operator_a_shuffled_layer():
    with backend("cpp"):
        layer = conv(UNITS["uniform"]).eval()
        program = torch.export.export(layer, (image(layer), None, "identity"))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [t for t in targets if "bunit_kernels" in t] == [
        "bunit_kernels.stacked_unit_conv2d.default"
    ]
    assert targets[-1] == "bunit_kernels.stacked_unit_conv2d.default"  # nothing after it


@pytest.mark.parametrize("which", ["torch", "cpp"])
@modes
def test_autocast(which, training):
    layer = conv(UNITS["hybrid"], dtype=torch.float32).train(training)
    plain = conv(UNITS["hybrid"], dtype=torch.float32, shuffle=False).train(training)
    plain.load_state_dict(layer.state_dict())
    x = image(layer)
    with backend(which), torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), plain(x)
    assert y.dtype == torch.bfloat16
    assert_near(y.double(), reordered(layer, expected).double(), tolerance(torch.bfloat16, 30, 4))


def test_transforms():
    layer = conv(UNITS["hybrid"], norm=None)
    x = image(layer)
    one_by_one = torch.func.vmap(lambda image: layer(image[None])[0])(x)
    assert_near(one_by_one, layer(x), NEAR)


def test_second_derivative():
    layer = conv(UNITS["hybrid"], norm=None, activation="silu", out_activation="silu")
    small = [torch.randn(1, layer.in_channels, 2, 2).double().requires_grad_()]
    with backend("cpp"):
        assert torch.autograd.gradgradcheck(layer, small)


def test_bunitize_shuffles_every_layer_that_it_puts_in():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1))
    new, _ = bunitize(model, shuffle=True)
    assert all(module.shuffle for module in new)
    plain, _ = bunitize(model)
    assert not any(module.shuffle for module in plain)
    plain.load_state_dict(new.state_dict())
    x = torch.randn(2, 16, 7, 8)
    first = reordered(new[0], plain[0](x))
    torch.testing.assert_close(new(x), reordered(new[1], plain[1](first)))


def test_models_shuffle_all_their_stacked_layers():
    model = models.create_model("bunit_resnet20", shuffle=True)
    plain = models.create_model("bunit_resnet20", shuffle=False)
    layers = [m for m in model.modules() if isinstance(m, StackedConv2d)]
    assert layers and all(layer.shuffle and layer.geometry.layout.shuffle for layer in layers)
    assert not any(m.shuffle for m in plain.modules() if isinstance(m, StackedConv2d))
    plain.load_state_dict(model.state_dict())
    for layer in layers:
        layer.set_shuffle(False)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    models.create_model("resnet20", shuffle=True)  # takes what its counterpart takes
    with pytest.raises(TypeError, match="shuffle must be a bool, got 'yes'"):
        models.create_model("bunit_mlp", shuffle="yes")
    with pytest.raises(TypeError, match="shuffle must be a bool, got 2"):
        layers[0].set_shuffle(2)
