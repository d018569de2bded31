"""Outputs of single units and their variances, against the loop over units in float64."""

from __future__ import annotations

import pytest
import torch
from module_cases import CONV_LAYERS, LINEAR_LAYERS, conv_layer, linear_layer
from torch import nn

from bunit_kernels import StackedConv2d, metrics, models


def loop(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Each unit on its channels; ``x`` ``[N, C, ...]``."""
    parts = x.split([unit.in_channels for unit in layer.units], 1)
    with torch.no_grad():
        return [unit(part) for unit, part in zip(layer.to_units(), parts, strict=True)]


@pytest.mark.parametrize("make, name", [(conv_layer, n) for n in CONV_LAYERS]
                         + [(linear_layer, n) for n in LINEAR_LAYERS])  # fmt: skip
def test_each_units_output_and_variance(make, name):
    torch.manual_seed(0)
    layer = make(name).double().eval()
    layer.out_activation = "leaky_relu"  # a ReLU might be off for all of it
    shape = (9, 8) if make is conv_layer else ()
    batches = [torch.randn(n, layer.in_channels, *shape, dtype=torch.float64) for n in (3, 1, 5)]
    net = nn.Sequential(layer)
    expected = loop(layer, batches[0])
    for found, y in zip(metrics.unit_outputs(net, batches[0], "0"), expected, strict=True):
        torch.testing.assert_close(found, y)
    units = []
    for y in loop(layer, torch.cat(batches)):
        channels = y.transpose(0, 1).flatten(1)
        units.append((channels - channels.mean(1, keepdim=True)).square().mean().item())
    mean = sum(units) / len(units)
    found = metrics.unit_variances(net, [(x, None) for x in batches])
    assert found.keys() == {"0"}
    assert found["0"] == pytest.approx([u / mean for u in units], rel=1e-9)
    assert sum(found["0"]) == pytest.approx(len(units))


def with_dead(*dead: int) -> StackedConv2d:
    """Six units of three kinds; the last norm of some has a scale of 0."""
    units = ["1-2-1", "2-1-2", "3-2-1"] * 2
    layer = StackedConv2d(units, activation="leaky_relu", out_activation="identity")
    outputs = torch.arange(layer.out_channels).split([u.out_channels for u in layer.units])
    with torch.no_grad():
        for unit in dead:
            layer.norms[-1].weight[outputs[unit]] = 0
            layer.norms[-1].bias[outputs[unit]] = 3
    return layer


def test_dead_units_are_those_that_are_constant():
    torch.manual_seed(0)
    net = nn.Sequential(with_dead(), nn.ReLU(), with_dead(1, 4, 5))
    net.insert(1, nn.Conv2d(net[0].out_channels, net[2].in_channels, 1))
    net.train()
    x = torch.randn(2, 4, net[0].in_channels, 6, 6)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    assert metrics.dead_units(net, list(x)) == {"0": (), "3": (1, 4, 5)}
    assert net.training and not net[0]._forward_hooks
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    values = metrics.unit_variances(net, list(x))["3"]
    assert [values[u] for u in (1, 4, 5)] == [0, 0, 0]
    highest = sorted(values)[3]  # the threshold is a strict one
    assert metrics.dead_units(net, list(x), threshold=highest)["3"] == (1, 4, 5)
    assert len(metrics.dead_units(net, list(x), threshold=highest * 1.01)["3"]) == 4


def test_a_layer_of_constants_alone_is_dead():
    net = nn.Sequential(with_dead(*range(6)))
    x = torch.randn(2, net[0].in_channels, 6, 6)
    assert metrics.unit_variances(net, [x]) == {"0": (0.0,) * 6}
    assert metrics.dead_units(net, [x]) == {"0": (0, 1, 2, 3, 4, 5)}


def test_a_large_mean_does_not_hide_a_variance():
    """Sums of squares in float32 would."""
    net = nn.Sequential(with_dead())
    with torch.no_grad():
        net[0].norms[-1].bias.fill_(1e4)
    x = torch.randn(4, net[0].in_channels, 6, 6)
    far = metrics.unit_variances(net, [x])["0"]
    with torch.no_grad():
        net[0].norms[-1].bias.zero_()
    assert far == pytest.approx(metrics.unit_variances(net, [x])["0"], rel=0.05)


@pytest.mark.parametrize("model", ["bunit_resnet20", "bunit_mobilenet_v2"])
def test_shortcuts_are_no_units_output(model):
    net = models.create_model(model, image_size=16).eval()
    seen = []
    for name, layer in metrics.kinds.stacked_layers(net).items():
        if not seen:  # its input, as the network runs
            layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)),
                                            with_kwargs=True)  # fmt: skip
            x, first = torch.randn(2, 3, 16, 16), name
            outputs = metrics.unit_outputs(net, x, name)
            break
    args, kwargs = seen[0]
    taken = args[0] if args else kwargs["x"]
    expected = loop(net.get_submodule(first), taken)
    for found, y in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)


def test_layers_that_are_not_called_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = conv_layer("uniform"), conv_layer("uniform")

        def forward(self, x):
            return self.used(x)

    net, x = Net(), torch.randn(2, 10, 6, 6)
    assert metrics.dead_units(net, [x]).keys() == {"used"}
    with pytest.raises(ValueError, match="layer 'unused' is not called"):
        metrics.unit_outputs(net, x, "unused")


def test_bad_requests():
    net = nn.Sequential(nn.Conv2d(3, 10, 3), conv_layer("uniform"))
    x = torch.randn(2, 3, 6, 6)
    for layer, message in (
        ("2", "the model has no module '2'; its stacked layers are '1'"),
        ("0", "'0' is no stacked layer but a conv 3x3; its stacked layers are '1'"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.unit_outputs(net, x, layer)
    with pytest.raises(ValueError, match="stacked layers are none"):
        metrics.unit_outputs(net[:1], x, "0x")
    many = nn.Sequential(*(conv_layer("uniform") for _ in range(12)))
    with pytest.raises(ValueError, match="'9' and 2 more"):
        metrics.unit_outputs(many, x, "12")
    with pytest.raises(ValueError, match=r"cannot take an item of shape \(4, 6, 6\)"):
        metrics.unit_outputs(net, torch.randn(2, 4, 6, 6), "1")
    for batches in ([], [x[:0]]):
        with pytest.raises(ValueError, match="no batch"):
            metrics.dead_units(net, batches)
    with pytest.raises(TypeError, match="must be a tensor"):
        metrics.dead_units(net, [{"x": x}])
    for threshold in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"above 0 and finite, got {threshold}"):
            metrics.dead_units(net, [x], threshold=threshold)
    with pytest.raises(ValueError, match="layer '1' puts out values that are not finite"):
        metrics.dead_units(net, [x / 0])
