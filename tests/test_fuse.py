"""``fuse``: the same outputs without norms, and nothing folded that must not be."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from module_cases import CONV_LAYERS, conv_layer, image, linear_layer
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import StackedConv2d, backend, fuse, models

NETWORKS = {
    "bunit_cnn": (3, 32, 32),
    "bunit_lenet": (1, 28, 28),
    "bunit_resnet20": (3, 16, 16),
    "bunit_mobilenet_v2": (3, 32, 32),
    "resnet20": (3, 16, 16),
}


def norms(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def lived(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, every norm as after some training."""
    for name in norms(model):
        norm = model.get_submodule(name)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
        if norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.double().eval()


def assert_same(model: nn.Module, other: nn.Module, *inputs: torch.Tensor) -> None:
    """Float64 leaves no doubt: rounding is 1e-16, a norm forgotten or doubled is 1."""
    inputs = [x.double() for x in inputs]
    with torch.no_grad():
        expected, actual = model(*inputs), other(*inputs)
    assert_near(actual, expected, 1e-11)


def conv_norm(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels))


@pytest.mark.parametrize("name", CONV_LAYERS)
def test_stacked_convolution(name, every_backend):
    layer = conv_layer(name).eval()
    fused = fuse(layer)
    assert fused.norms is None
    x = image(layer)
    terms = 9 * max(max(u.widths) for u in layer.units)
    with torch.no_grad():
        assert_near(fused(x), layer(x), tolerance(x.dtype, terms, 4 * layer.layout.depth))


@pytest.mark.parametrize("name", ["norm", "norm and bias", "uniform"])
def test_stacked_linear(name):
    layer = linear_layer(name).double().eval()
    fused = fuse(layer)
    assert fused.norms is None
    assert_same(layer, fused, torch.randn(5, layer.in_features))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_has_no_norm_left_and_the_same_outputs(name):
    shape = NETWORKS[name]
    model = models.create_model(name, in_channels=shape[0], image_size=shape[1:], num_classes=10)
    lived(model)
    before, state = norms(model), {k: v.clone() for k, v in model.state_dict().items()}
    fused = fuse(model)
    assert norms(fused) == [] and type(fused) is type(model)
    assert norms(model) == before, "the model itself was changed"
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert_same(model, fused, torch.randn(2, *shape))


def test_a_fused_layer_folds_no_more(monkeypatch):
    fused = fuse(conv_layer("uniform").eval())
    monkeypatch.setattr(StackedConv2d, "folded", lambda self: pytest.fail("folded on a call"))
    fused(image(fused))


def test_inplace_changes_the_model_itself():
    model = lived(nn.Sequential(conv_norm(), StackedConv2d("2-4-2", 2)))
    same = copy.deepcopy(model)
    assert fuse(model, inplace=True) is model
    assert norms(model) == []
    assert_same(same, model, torch.randn(2, 3, 8, 8))


def test_training_mode_is_refused_and_changes_nothing():
    model = nn.Sequential(conv_norm(), StackedConv2d("2-4-2", 2))
    with pytest.raises(ValueError, match="eval mode.*model.eval.. first; it is in training mode"):
        fuse(model, inplace=True)
    model.eval()
    model[1].norms[1].train()
    with pytest.raises(ValueError, match="module '1.norms.1' is in training mode"):
        fuse(model, inplace=True)
    assert len(norms(model)) == 3
    with pytest.raises(TypeError, match="takes an nn.Module, got str"):
        fuse("bunit_resnet18")


# What is a pair and what is not -------------------------------------------------------------------


class Given(nn.Module):
    """A convolution and a norm, called as ``function`` says."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def by_shape(m, x):
    """Control flow that no tracer follows."""
    return m.norm(m.conv(x)) if x.sum() > 0 else m.conv(x)


NO_PAIR = {
    "the output is used twice": lambda m, x: (y := m.conv(x)) + m.norm(y),
    "the norm takes two outputs": lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x)),
    "something between": lambda m, x: m.norm(F.relu(m.conv(x))),
    "the norm's input is a sum": lambda m, x: m.norm(m.conv(x) + m.other(x)),
    "the weight is used, too": lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(),
    "control flow": by_shape,
    "the norm first": lambda m, x: m.conv(x) + m.norm(m.other(x)) - m.norm(m.conv(x)),
}


@pytest.mark.parametrize("what", NO_PAIR)
def test_no_pair(what):
    model = lived(Given(NO_PAIR[what]))
    fused = fuse(model)
    assert norms(fused) == ["norm"]
    for sign in (1, -1):
        assert_same(model, fused, sign * torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.relu(m.norm(m.conv(x))),
        lambda m, x: m.norm(m.conv(x)) + m.norm(m.conv(x + 1)),
        lambda m, x: m.other(x) + m.norm(m.conv(x)),
    ],
)
def test_pair(function):
    model = lived(Given(function))
    fused = fuse(model)
    assert norms(fused) == []
    assert_same(model, fused, torch.randn(2, 3, 8, 8))


def test_pairs_inside_what_cannot_be_traced():
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(conv_norm(), nn.ReLU())
            self.stack = StackedConv2d("2-4-2", 2)

        def forward(self, x):
            return self.stack(self.body(x)) if x.mean() > 0 else self.body(x)

    model = lived(Untraceable())
    fused = fuse(model)
    assert norms(fused) == []
    for sign in (1, -1):
        assert_same(model, fused, sign * torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("change", ["no statistics", "hook", "subclass"])
def test_norms_that_cannot_be_folded_stay(change):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), StackedConv2d("2-4-2", 2))
    if change == "no statistics":
        model[1] = nn.BatchNorm2d(4, track_running_stats=False)
        model[2].norms[0] = nn.BatchNorm2d(8, track_running_stats=False)
    elif change == "hook":
        for norm in (model[1], model[2].norms[0]):
            norm.register_forward_hook(lambda module, args, out: 2 * out)
    else:
        double = type("Double", (nn.BatchNorm2d,), {"forward": lambda self, x: 2 * x})
        model[1], model[2].norms[0] = double(4), double(8)
    fused = fuse(lived(model))
    assert norms(fused) == norms(model)
    assert_same(model, fused, torch.randn(2, 3, 8, 8))


# A fused network is an ordinary one ---------------------------------------------------------------


@pytest.fixture
def fused():
    return fuse(lived(nn.Sequential(conv_norm(), StackedConv2d(["1-2-1", "3-2-1:k5"]))))


def test_state_dict_and_pickle(fused):
    x = torch.randn(2, 3, 8, 8).double()
    other = fuse(lived(nn.Sequential(conv_norm(), StackedConv2d(["1-2-1", "3-2-1:k5"]))))
    with torch.no_grad():
        assert not torch.equal(other(x), fused(x))
        other.load_state_dict(fused.state_dict())
        assert torch.equal(other(x), fused(x))
        assert torch.equal(pickle.loads(pickle.dumps(fused))(x), fused(x))
        assert torch.equal(copy.deepcopy(fused)(x), fused(x))


def test_fused_twice_is_fused_once(fused):
    again = fuse(fused)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in fused.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_compile_and_export(fused):
    x = torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        expected = fused(x)
        compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        program = torch.export.export(fused, (x,))
        torch.testing.assert_close(program.module()(x), expected)
    calls = [n.target for n in program.graph.nodes if "bunit" in str(n.target)]
    assert len(calls) == 1, f"one launch for the stacked layer, got {calls}"


def test_fused_units_are_the_loops(fused):
    layer = fused[1]
    x = torch.randn(2, 4, 6, 6).double()
    with torch.no_grad(), backend("reference"):
        expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(StackedConv2d.from_units(layer.to_units())(x), expected)
