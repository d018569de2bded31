"""Eval of layers with norms follows every change of parameters and statistics, however made."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from bunit_kernels import StackedConv2d, StackedLinear, UnitSpec

LAYERS = {
    "uniform": lambda: StackedConv2d("2-4-2", 3),
    "hybrid": lambda: StackedConv2d([UnitSpec("2-4-2"), UnitSpec("4-8-4"), UnitSpec("2-2-2")]),
    "linear": lambda: StackedLinear("4-8-4", 3, norm="batch"),
    "with biases": lambda: StackedConv2d("2-4-2", 3, bias=True),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    layer = LAYERS[request.param]().double().eval()
    randomise(layer)
    return layer


@torch.no_grad()
def randomise(layer):
    for norm in layer.norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)


def batch(layer):
    size = () if isinstance(layer, StackedLinear) else (5, 5)
    return torch.randn(3, layer.layout.in_channels, *size, dtype=layer.weights[0].dtype)


def check(layer, x):
    """Against a loop over units made from the state as it is now."""
    units = layer.to_units()
    dim = 1 if x.dim() == 4 else -1
    widths = [unit.widths[0] for unit in layer.units]
    parts = x.split(widths, dim)
    want = torch.cat([unit.eval()(part) for unit, part in zip(units, parts, strict=True)], dim)
    torch.testing.assert_close(layer(x), want)


def by_step(layer, **options):
    grads = list(layer.parameters())
    for parameter in grads:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(grads, lr=0.1, **options).step()


def by_load(layer, **options):
    state = {k: v * 2 if v.is_floating_point() else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, **options)


def by_data(layer):
    for tensor in (layer.weights[0], layer.norms[0].weight, layer.norms[0].running_var):
        tensor.data.mul_(2)


def by_new_data(layer):
    layer.norms[0].bias.data = layer.norms[0].bias.data + 1


CHANGES = {
    "in place": randomise,
    "load_state_dict": by_load,
    "load_state_dict, assign": lambda layer: by_load(layer, assign=True),
    "data in place": by_data,
    "data set": by_new_data,
    "foreach step": lambda layer: by_step(layer, foreach=True),
    "fused step": lambda layer: by_step(layer, fused=True),
    "dtype there and back": lambda layer: layer.float().double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_goes_unseen(layer, change):
    x = batch(layer)
    with torch.no_grad():
        check(layer, x)
    with torch.inference_mode():
        before = layer(x)
    CHANGES[change](layer)
    with torch.no_grad():
        check(layer, x)
        if change != "dtype there and back":
            assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_on_its_own(layer, how):
    x = batch(layer)
    with torch.no_grad():
        before = layer(x)
        other = how(layer)
        by_data(other)
        check(other, x)
        assert torch.equal(layer(x), before)


def test_functional_call_takes_what_it_is_given(layer):
    x = batch(layer)
    with torch.no_grad():
        layer(x)
        values = {k: v * 2 if v.is_floating_point() else v for k, v in layer.state_dict().items()}
        got = torch.func.functional_call(layer, values, (x,))
        layer.load_state_dict(values)
        check(layer, x)
        assert torch.equal(got, layer(x))


def test_gradients_after_a_call_in_inference_mode(layer):
    x = batch(layer)
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_nothing_folded_is_in_the_state(layer):
    names = set(layer.state_dict())
    with torch.no_grad():
        layer(batch(layer))
    assert set(layer.state_dict()) == names
