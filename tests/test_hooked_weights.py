"""Weights that hooks and parametrizations make of others: pruned, normalised, halved."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from module_cases import run_units
from tolerance import assert_near, tolerance
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_weight_norm

from bunit_kernels import StackedConv2d, StackedLinear, fuse
from bunit_kernels.nn.replace_units import replace_units

NEAR = tolerance(torch.float64, terms=300, roundings=30)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def old_weight_norm(module, name):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(module, name)


CHANGES = {
    "pruned": lambda module, name: prune.l1_unstructured(module, name, 0.5),
    "pruned by channels": lambda module, name: prune.ln_structured(module, name, 0.5, n=2, dim=0),
    "weight norm": parametrizations.weight_norm,
    "older weight norm": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "older spectral norm": torch.nn.utils.spectral_norm,
    "parametrized": lambda module, name: parametrize.register_parametrization(
        module, name, Halved()
    ),
}
each_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


def level_and_convolution():
    """A layer of one level, and the grouped convolution that it is."""
    layer = StackedConv2d("2-3", 4, norm=None, out_activation="identity").double()
    conv = nn.Conv2d(8, 12, 3, padding=1, groups=4).double()
    conv.load_state_dict({"weight": layer.weights[0], "bias": layer.biases[0]})
    return layer, conv


@each_change
def test_trained_as_a_convolution_is(change):
    layer, conv = level_and_convolution()
    for module, name in ((layer.weights, "0"), (conv, "weight")):
        torch.manual_seed(1)  # spectral norm starts from random vectors
        change(module, name)
    steps = [torch.optim.SGD(m.parameters(), 0.1) for m in (layer, conv)]
    for _ in range(3):
        x = torch.randn(2, 8, 5, 6).double()
        outputs = [m(x) for m in (layer, conv)]
        assert_near(*outputs, NEAR)
        for y, step in zip(outputs, steps, strict=True):
            step.zero_grad()
            y.square().mean().backward()
            step.step()
    mine, theirs = (sorted(t.sum().item() for t in m.state_dict().values()) for m in (layer, conv))
    assert mine == pytest.approx(theirs)


@each_change
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", ["batch", None])
def test_later_changes_are_seen(change, training, norm):
    layer = StackedConv2d(["1-2-1", "2-1-2"], norm=norm, bias=True).double().train(training)
    linear = StackedLinear("2-3-2", 2, norm=norm).double().train(training)
    for module, x in ((layer, torch.randn(3, 3, 5, 6)), (linear, torch.randn(5, 4))):
        x = x.double()
        change(module.weights, "0")
        if module is linear:
            change(module.weights, "1")
        module(x)  # keeps nothing
        with torch.no_grad():
            for parameter in module.weights.parameters():
                parameter.copy_(torch.randn_like(parameter))
        module.weights.eval()  # in training spectral norm takes a step at each call
        expected = run_units(module.to_units(), x)
        assert_near(module(x), expected, NEAR)


def test_removed_again():
    layer, conv = level_and_convolution()
    before = list(layer.state_dict())
    for change, remove in (
        (CHANGES["pruned"], prune.remove),
        (CHANGES["older weight norm"], remove_weight_norm),
        (CHANGES["parametrized"], parametrize.remove_parametrizations),
    ):
        change(layer.weights, "0")
        assert sorted(layer.state_dict()) != sorted(before)
        remove(layer.weights, "0")
        assert sorted(layer.state_dict()) == sorted(before)
    x = torch.randn(2, 8, 5, 6).double()
    conv.load_state_dict({"weight": layer.weights[0], "bias": layer.biases[0]})
    assert_near(layer(x), conv(x), NEAR)


def test_global_pruning_with_biases_and_dense_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), StackedConv2d("2-4-2", 4, bias=True))
    layer = net[1]
    tensors = [(net[0], "weight"), (layer.weights, "0"), (layer.weights, "1"), (layer.biases, "1")]
    prune.global_unstructured(tensors, prune.L1Unstructured, amount=0.6)
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    values = [getattr(module, name) for module, name in tensors]
    zeros = sum((value == 0).sum().item() for value in values)
    assert zeros == round(0.6 * sum(value.numel() for value in values))
    assert layer.weights[0].eq(0).any()
    masked = layer.weights.get_parameter("0_orig").grad[layer.weights.get_buffer("0_mask") == 0]
    assert len(masked) > 0 and masked.eq(0).all()


@each_change
def test_folded_copied_saved_and_called_functionally(change):
    layer = StackedConv2d("2-3-2", 3).double()
    change(layer.weights, "0")
    x = torch.randn(2, 6, 5, 5).double()
    with torch.no_grad():
        layer(x)  # moves the statistics
        layer.eval()
        expected = layer(x)
        assert_near(fuse(layer)(x), expected, NEAR)
        assert_near(copy.deepcopy(layer)(x), expected, NEAR)
        assert_near(torch.optim.swa_utils.AveragedModel(layer).eval()(x), expected, NEAR)
        state = {key: value.clone() for key, value in layer.state_dict().items()}
        others = {key: torch.randn_like(value) for key, value in layer.named_parameters()}
        y = torch.func.functional_call(layer, others, (x,))
        assert_near(layer(x), expected, NEAR)
        other = StackedConv2d("2-3-2", 3).double()
        change(other.weights, "0")
        other.load_state_dict(state, assign=True)
        assert_near(other.eval()(x), expected, NEAR)
        other.load_state_dict(others, strict=False)
        assert_near(y, other(x), NEAR)


def test_a_pruned_layer_is_pickled():
    layer = StackedConv2d("2-3-2", 3)
    prune.l1_unstructured(layer.weights, "1", 0.5)
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        expected = layer.eval()(x)
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert torch.equal(again(x), expected)
        again.weights.get_parameter("1_orig").zero_()
        assert not torch.equal(again(x), expected)


def test_a_plain_layer_averages_and_assigns():
    """The list that holds the weights is no ParameterList of PyTorch's any more."""
    layer, other = (StackedConv2d("2-3-2", 3) for _ in range(2))
    x = torch.randn(2, 6, 5, 5)
    average = torch.optim.swa_utils.AveragedModel(layer)
    for model in (layer, other):
        average.update_parameters(model)
    mean = (layer.weights[0] + other.weights[0]) / 2
    torch.testing.assert_close(average.module.weights[0], mean)
    other.load_state_dict(layer.state_dict(), assign=True)
    assert other.weights[0].data_ptr() == layer.weights[0].data_ptr()
    assert torch.equal(other.eval()(x), layer.eval()(x))


def test_compiled_with_a_pruned_weight():
    layer = StackedConv2d("2-3-2", 3)
    prune.l1_unstructured(layer.weights, "0", 0.5)
    x = torch.randn(2, 6, 5, 5)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for model in (layer, compiled):
        for _ in range(2):
            model(x).sum().backward()
    grads = [m.weights.get_parameter("0_orig").grad for m in (layer, compiled)]
    torch.testing.assert_close(*grads)


def test_a_loop_does_not_load_into_pruned_weights():
    layer = StackedConv2d("2-3-2", 3)
    loop = layer.to_units().state_dict()
    prune.l1_unstructured(layer.weights, "0", 0.5)
    with pytest.raises(RuntimeError, match=r"Missing key.*weights.0_orig"):
        layer.load_state_dict(loop)
    del loop["0.0.weight"]
    with pytest.raises(RuntimeError, match="0.0.weight is missing in the state of a loop"):
        layer.load_state_dict(loop)


def test_units_of_pruned_weights_are_not_replaced():
    layer = StackedConv2d(["1-2-1", "1-1-1"])
    prune.l1_unstructured(layer.weights, "1", 0.5)
    with pytest.raises(ValueError, match=r"in its weights: tensor 1 of 2 .* prune.remove"):
        replace_units(layer, [0], ["1-3-1"])
    prune.remove(layer.weights, "1")
    replace_units(layer, [0], ["1-3-1"])
