"""Copies, files, and the two forms of a layer's parameters: packed, and as a loop of units."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from module_cases import (
    CONV_LAYERS,
    LINEAR_LAYERS,
    conv_layer,
    image,
    linear_layer,
    run_units,
)
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import StackedConv2d, StackedLinear, fuse
from bunit_kernels.activations import ACTIVATIONS

LAYERS = [
    *((conv_layer, name) for name in CONV_LAYERS),
    *((linear_layer, name) for name in LINEAR_LAYERS),
]
every_layer = pytest.mark.parametrize(
    ("build", "name"), LAYERS, ids=[f"{build.__name__}-{name}" for build, name in LAYERS]
)
NEAR = tolerance(torch.float64, terms=1000, roundings=30)


def fresh(layer):
    """A layer like ``layer`` with other parameters."""
    other = copy.deepcopy(layer)
    other.reset_parameters()
    return other


def assert_same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


def run(layer):
    """The layer's output for an input that depends on its shape alone."""
    torch.manual_seed(0)
    if isinstance(layer, StackedConv2d):
        return layer(image(layer))
    return layer(torch.randn(5, layer.in_features, dtype=layer.weights[0].dtype))


@every_layer
def test_deepcopy_and_pickle(build, name):
    layer = build(name).eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same_state(layer, other)
        assert other.units == layer.units
        assert torch.equal(run(other), run(layer))
        assert not any(
            p.data_ptr() == q.data_ptr()
            for p, q in zip(layer.parameters(), other.parameters(), strict=True)
        )


@every_layer
def test_state_dict_round_trip(build, name):
    layer = build(name)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    other = fresh(layer)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert_same_state(layer, other)


@every_layer
def test_state_of_the_loop_loads(build, name):
    layer = build(name)
    other = fresh(layer)
    state = layer.to_units().state_dict()
    keys = list(state)
    result = other.load_state_dict(state)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(state) == keys  # the caller's dictionary stays as it was
    assert_same_state(layer, other)


@pytest.mark.parametrize("assign", [False, True])
def test_state_of_a_loop_in_a_larger_model_loads(assign):
    def model(as_loop):
        layers = [conv_layer("hybrid"), conv_layer("no norm")]
        layers = [layer.to_units() for layer in layers] if as_loop else layers
        body = nn.ModuleDict({"first": layers[0], "rest": nn.ModuleList([layers[1]])})
        return nn.ModuleDict({"stem": nn.Conv2d(3, 10, 3), "body": body})

    loop, packed = model(as_loop=True), model(as_loop=False)
    packed.load_state_dict(loop.state_dict(), assign=assign)
    for mine, loops in (
        (packed["body"]["first"], loop["body"]["first"]),
        (packed["body"]["rest"][0], loop["body"]["rest"][0]),
    ):
        again = mine.to_units().state_dict()
        assert all(torch.equal(value, again[key]) for key, value in loops.state_dict().items())
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in mine.parameters())
    assert torch.equal(packed["stem"].weight, loop["stem"].weight)


def test_state_of_the_loop_loads_into_another_dtype():
    layer = conv_layer("hybrid")
    other = fresh(layer).double()
    other.load_state_dict(layer.to_units().state_dict())
    assert all(
        torch.equal(p.float(), q)
        for p, q in zip(other.parameters(), layer.parameters(), strict=True)
    )
    assert other.weights[0].dtype == torch.float64


def test_loading_one_layers_state_leaves_the_other_alone():
    """State under ``1`` must not be taken for that of a unit of the layer under ``10``."""
    model = nn.ModuleList([conv_layer("uniform") for _ in range(11)])
    loops = nn.ModuleList([layer.to_units() for layer in model])
    other = copy.deepcopy(model)
    for layer in other:
        layer.reset_parameters()
    other.load_state_dict(loops.state_dict())
    assert_same_state(model, other)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.update({"weights.0": torch.zeros(20, 2, 5, 5)}), "weights.0"),
        (lambda s: s.update({"norms.1.running_var": torch.ones(7)}), "norms.1.running_var"),
        (lambda s: s.update({"weights.1": torch.zeros(360)}), "weights.1"),
    ],
)
def test_packed_state_of_a_wrong_shape(change, named):
    layer = conv_layer("uniform")
    state = layer.state_dict()
    expected, before = tuple(state[named].shape), copy.deepcopy(layer)
    change(state)
    with pytest.raises(RuntimeError, match="size mismatch for " + named) as error:
        layer.load_state_dict(state)
    assert str(list(state[named].shape)) in str(error.value)
    assert str(list(expected)) in str(error.value)
    assert torch.equal(
        layer.get_parameter("norms.0.weight"), before.get_parameter("norms.0.weight")
    )


@pytest.mark.parametrize(
    ("unit", "key", "shape"),
    [("0", "0.weight", (4, 2, 5, 5)), ("2", "3.weight", (2, 3, 3, 3)), ("1", "1.bias", (5,))],
)
def test_loop_state_of_a_wrong_shape(unit, key, shape):
    """One line names the unit's tensor, its shape and the one expected; no list of all keys."""
    layer = conv_layer("uniform")
    state = layer.to_units().state_dict()
    expected = tuple(state[f"{unit}.{key}"].shape)
    state[f"{unit}.{key}"] = torch.zeros(shape)
    with pytest.raises(RuntimeError, match=f"size mismatch for {unit}.{key}") as error:
        layer.load_state_dict(state)
    assert str(shape) in str(error.value) and str(expected) in str(error.value)
    assert str(error.value).count("\n") == 1


@pytest.mark.parametrize("strict", [True, False])
def test_loop_state_that_is_incomplete(strict):
    model = nn.ModuleDict({"layer": conv_layer("uniform")})
    state = nn.ModuleDict({"layer": model["layer"].to_units()}).state_dict()
    del state["layer.3.0.weight"]
    with pytest.raises(RuntimeError, match=r"layer\.3\.0\.weight is missing.*\(4, 2, 3, 3\)"):
        model.load_state_dict(state, strict=strict)


def test_loop_state_of_more_units():
    state = conv_layer("uniform", num_units=6).to_units().state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*\"5\.0\.weight\""):
        conv_layer("uniform").load_state_dict(state)


def test_state_of_other_widths():
    layer = conv_layer("uniform")
    with pytest.raises(RuntimeError, match=r"size mismatch for weights\.0"):
        layer.load_state_dict(StackedConv2d("2-6-2", 5).state_dict())


def test_unexpected_keys_beside_a_loops_state():
    layer = conv_layer("uniform")
    state = layer.to_units().state_dict() | {"extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="extra"):
        layer.load_state_dict(state)
    result = layer.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["extra"] and not result.missing_keys


def test_loop_state_without_batch_counts():
    """As old checkpoints have it: BatchNorm itself then loads with ``strict=False`` alone."""
    layer = conv_layer("uniform")
    other = fresh(layer)
    state = {k: v for k, v in layer.to_units().state_dict().items() if "num_batches" not in k}
    result = other.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all(map(torch.equal, layer.parameters(), other.parameters()))


def test_state_dict_of_moved_and_converted_layers():
    layer = conv_layer("uniform")
    moved = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert_same_state(layer, moved)
    other = fresh(moved)
    other.load_state_dict(layer.to_units().state_dict())
    assert_same_state(layer, other)


def test_optimizer_state_round_trip():
    """Parameters come in one order, so that an optimiser's state finds them again."""
    layer = conv_layer("hybrid")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    run(layer).square().mean().backward()
    optimizer.step()
    other = copy.deepcopy(layer)
    resumed = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((layer, optimizer), (other, resumed)):
        its.zero_grad()
        run(one).square().mean().backward()
        its.step()
    assert_same_state(layer, other)


# --- to_units and from_units ---------------------------------------------------------------------


@every_layer
def test_there_and_back_is_exact(build, name):
    layer = build(name).eval()
    units = layer.to_units()
    back = type(layer).from_units(units)
    assert_same_state(layer, back)
    assert [u.widths for u in back.units] == [u.widths for u in layer.units]
    assert back.out_activation == layer.out_activation
    assert torch.equal(run(back), run(layer))
    assert not any(module.training for module in back.modules())
    fuse(back)  # which refuses a module in training mode


@pytest.mark.parametrize("name", CONV_LAYERS)
def test_units_are_plain_modules(name):
    layer = conv_layer(name)
    units = layer.to_units()
    assert isinstance(units, nn.ModuleList) and len(units) == len(layer.units)
    kinds = {type(m) for unit in units for m in unit}
    activations = {type(ACTIVATIONS[a].module()) for a in (layer.activation, layer.out_activation)}
    assert kinds <= {nn.Conv2d, nn.BatchNorm2d} | activations


def test_units_are_copies():
    layer = conv_layer("uniform")
    before = copy.deepcopy(layer)
    with torch.no_grad():
        for tensor in layer.to_units().state_dict().values():
            tensor.zero_()
    assert_same_state(layer, before)
    units = layer.to_units()
    StackedConv2d.from_units(units).weights[0].data.zero_()
    assert torch.equal(units[0][0].weight, layer.weights[0][:4])


def test_modes_and_settings_of_norms_go_along():
    layer = conv_layer("uniform")
    layer.norms[0].eval()
    for norm in layer.norms:
        norm.momentum, norm.eps = 0.3, 0.01
    units = layer.to_units()
    assert [unit[1].training for unit in units] == [False] * 5
    assert [unit[4].training for unit in units] == [True] * 5
    back = StackedConv2d.from_units(units)
    assert [norm.training for norm in back.norms] == [False, True]
    assert [(norm.momentum, norm.eps) for norm in back.norms] == [(0.3, 0.01)] * 2


def test_the_authors_layout_converts():
    """Their code: per unit a nested Sequential of (conv, norm, ReLU) blocks, in a ModuleList."""

    def block(c_in, c_out, stride):
        conv = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))

    widths = [(1, 2, 1), (3, 2, 1), (2, 1, 2)]
    units = nn.ModuleList(nn.Sequential(block(a, b, 2), block(b, c, 1)) for a, b, c in widths)
    units.double()
    run_units(units, torch.randn(8, 6, 7, 7).double())  # moves the running statistics
    layer = StackedConv2d.from_units(units)
    assert [str(u) for u in layer.units] == ["1-2-1:k3", "3-2-1:k3", "2-1-2:k3"]
    assert (layer.stride, layer.padding) == (2, "same")
    x = image(layer)
    for training in (True, False):
        expected = run_units(copy.deepcopy(units).train(training), x)
        assert_near(copy.deepcopy(layer).train(training)(x), expected, NEAR)


def unit(*modules):
    return nn.Sequential(*modules)


@pytest.mark.parametrize("padding", ["same", 1, 2, 0, "valid"])
def test_paddings_are_read(padding):
    layer = StackedConv2d.from_units([unit(nn.Conv2d(2, 3, 3, padding=padding), nn.ReLU())] * 2)
    assert layer.padding == {"same": "same", 1: "same", "valid": 0}.get(padding, padding)
    x = torch.randn(2, 4, 6, 7)
    conv = nn.Conv2d(2, 3, 3, padding=padding)
    assert layer(x).shape[2:] == conv(x[:, :2]).shape[2:]


def test_units_without_activation_and_with_identity():
    conv, plain = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    layer = StackedConv2d.from_units([unit(conv, nn.Identity(), nn.GELU(), plain)])
    assert (layer.activation, layer.out_activation) == ("gelu", "identity")
    x = torch.randn(2, 2, 5, 5)
    assert_near(layer(x), plain(nn.functional.gelu(conv(x))), tolerance(torch.float32, 27, 10))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_recognised(name):
    conv = nn.Conv2d(1, 1, 1)
    layer = StackedConv2d.from_units([unit(conv, ACTIVATIONS[name].module(), conv)])
    assert layer.activation == name


def test_grouped_convolutions_of_other_kernel_sizes_are_read():
    """An inverted residual as one would write it, beside a plain unit of as many levels."""
    relu = nn.ReLU()
    inverted = unit(
        nn.Conv2d(4, 24, 1, stride=2), relu, nn.Conv2d(24, 24, 3, padding=1, groups=24), relu,
        nn.Conv2d(24, 6, 1, groups=2), relu,
    )  # fmt: skip
    plain = unit(
        nn.Conv2d(2, 3, 3, 2, 1), relu, nn.Conv2d(3, 4, 5, padding="same"), relu,
        nn.Conv2d(4, 2, 3, padding=1), relu,
    )  # fmt: skip
    layer = StackedConv2d.from_units([inverted, plain])
    assert [str(u) for u in layer.units] == ["4-24-24-6:k1,3,1:g1,24,2", "2-3-4-2:k3,5,3"]
    assert (layer.stride, layer.padding) == (2, "same")
    x = torch.randn(2, 6, 7, 8)
    assert_near(layer(x), torch.cat([inverted(x[:, :4]), plain(x[:, 4:])], 1), 1e-5)
    loop = layer.to_units()
    assert [str(m) for u in loop for m in u if isinstance(m, nn.Conv2d)][1] == str(inverted[2])
    state = {
        f"{i}.{k}": v for i, u in enumerate((inverted, plain)) for k, v in u.state_dict().items()
    }
    fresh = StackedConv2d(layer.units, stride=2, norm=None)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), layer(x))


CONV, NORM, RELU = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "at least one unit, got an empty list"),
        ([unit()], "unit 0 holds no Conv2d"),
        ([unit(nn.Linear(2, 2))], "unit 0 must start with Conv2d, got Linear"),
        ([unit(RELU, CONV)], "unit 0 must start with Conv2d, got ReLU"),
        ([unit(CONV, RELU, NORM)], "unit 0 is not a chain of levels"),
        ([unit(CONV, RELU, RELU)], "unit 0 is not a chain of levels"),
        ([unit(CONV, nn.Tanh())], r"unit 0 holds Tanh\(\): no activation of relu"),
        ([unit(CONV, nn.LeakyReLU(0.2))], "no activation of .* is LeakyReLU"),
        ([unit(CONV, nn.GELU("tanh"))], "no activation of .* is GELU"),
        ([unit(CONV, nn.MaxPool2d(2), CONV)], r"unit 0 holds MaxPool2d"),
        ([unit(CONV, RELU), unit(CONV, RELU, CONV)], "unit 1 has levels 2, unit 0 has 1"),
        ([unit(CONV, RELU), unit(CONV, NORM, RELU)], "unit 1 has norms True, unit 0 has False"),
        ([unit(CONV, RELU), unit(CONV)], "unit 1 has activations"),
        ([unit(CONV, NORM, RELU, CONV)], "unit 0 has a norm after some levels and none after"),
        ([unit(CONV, RELU, CONV, nn.GELU(), CONV)], "unit 0 has different hidden activations"),
        (
            [unit(CONV, nn.Conv2d(2, 2, 3, padding=1, bias=False))],
            "unit 0 has a bias in some levels and none in others",
        ),
        ([unit(CONV), unit(nn.Conv2d(2, 2, 3, stride=2, padding=1))], r"one stride, got \[1, 2\]"),
        (
            [unit(CONV), unit(nn.Conv2d(2, 2, 3, padding=0))],
            r"one padding where not every level keeps the size, got \[0, 1\]",
        ),
        ([unit(nn.Conv2d(2, 2, (3, 1)))], "unit 0, level 1 must be square"),
        ([unit(nn.Conv2d(2, 2, 3, padding_mode="reflect", padding=1))], "zero-padded"),
        ([unit(CONV, nn.Conv2d(2, 2, 3, 2, 1))], "unit 0, level 2 has stride 2; only the first"),
        ([unit(CONV, nn.Conv2d(3, 2, 3, 1, 1))], "level 2 takes 3 channels, the level before.* 2"),
        ([unit(CONV, nn.Conv2d(2, 2, 3, padding=2, dilation=2))], r"one dilation, got \[1, 2\]"),
        ([unit(CONV, nn.Conv2d(2, 2, 5))], r"keeps the size, got \[0, 1\]"),
        ([unit(CONV, nn.BatchNorm2d(2, affine=False)), unit(CONV, NORM)], "tensors of the norms"),
        ([unit(CONV, nn.InstanceNorm2d(2)), unit(CONV, NORM)], "class of the norms"),
        ([unit(CONV, nn.GroupNorm(1, 2))], r"unit 0 holds GroupNorm\(1, 2"),
        ([unit(CONV, nn.BatchNorm2d(2, eps=1)), unit(CONV, NORM)], "eps of the norms"),
        ([unit(CONV, nn.BatchNorm2d(2, momentum=0.5)), unit(CONV, NORM)], "momentum of the norms"),
        ([unit(CONV, nn.BatchNorm2d(2).eval()), unit(CONV, NORM)], "mode"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "units",
)
def test_units_that_are_no_stacked_layer(units, message):
    with pytest.raises(ValueError, match=message):
        StackedConv2d.from_units(units)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([unit(CONV)], "unit 0 must start with Linear, got Conv2d"),
        ([unit(nn.Linear(2, 3), nn.Linear(2, 3))], "level 2 takes 2 features, the level.* 3"),
    ],
    ids=["conv", "widths"],
)
def test_units_that_are_no_stacked_linear_layer(units, message):
    with pytest.raises(ValueError, match=message):
        StackedLinear.from_units(units)
