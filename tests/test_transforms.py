"""torch.func's transforms of stacked layers: autograd's gradients, of each image by itself too."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

from bunit_kernels import StackedConv2d, StackedLinear, backend, backends, functional

LAYERS = {
    "linear": lambda: StackedLinear("4-8-4", 3),
    "wide linear": lambda: StackedLinear("16-12", 2),
    "hybrid linear": lambda: StackedLinear(("4-8-4", "2-3-1"), activation="gelu"),
    "conv": lambda: StackedConv2d("2-4-2", 3, norm=None),
    "conv with norms": lambda: StackedConv2d("2-4-2", 3, stride=2).eval(),
    "hybrid conv": lambda: StackedConv2d(("2-4-2", "1-2-3:k1")).eval(),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]().double()


def some_input(layer, count=3):
    torch.manual_seed(1)
    linear = isinstance(layer, StackedLinear)
    return torch.randn(
        count, *((layer.in_features,) if linear else (layer.in_channels, 7, 6))
    ).double()


def loss_of(layer):
    fixed = dict(layer.named_buffers())
    return lambda parameters, x: functional_call(layer, {**fixed, **parameters}, (x,)).pow(3).sum()


def parameters_of(layer):
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


def by_autograd(layer, x):
    gradients = torch.autograd.grad(layer(x).pow(3).sum(), list(layer.parameters()))
    return dict(zip(parameters_of(layer), gradients, strict=True))


def test_grad(layer):
    x = some_input(layer)
    torch.testing.assert_close(grad(loss_of(layer))(parameters_of(layer), x), by_autograd(layer, x))


def test_gradients_of_each_sample(layer):
    x, loss = some_input(layer), loss_of(layer)
    each = vmap(grad(lambda p, one: loss(p, one[None])), (None, 0))(parameters_of(layer), x)
    for i in range(len(x)):
        own = {name: gradient[i] for name, gradient in each.items()}
        torch.testing.assert_close(own, by_autograd(layer, x[i : i + 1]))


def test_vmap_and_jvp(layer):
    x = some_input(layer)
    outputs = vmap(lambda one: layer(one[None]))(x)
    torch.testing.assert_close(outputs[:, 0], layer(x))

    direction = torch.randn_like(x)
    _, along = jvp(lambda x: loss_of(layer)(parameters_of(layer), x), (x,), (direction,))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    torch.testing.assert_close(along, (gradient * direction).sum())


def test_our_own_kernels_say_that_they_cannot():
    layer = LAYERS["conv"]().double()
    x = some_input(layer)
    with backend("cpp"), pytest.raises(backends.BackendUnavailable, match=r"torch\.func.*'auto'"):
        grad(loss_of(layer))(parameters_of(layer), x)
    weight = torch.randn(12, 2, dtype=torch.float64)
    with backend("cpp"), pytest.raises(backends.BackendUnavailable, match=r"torch\.func"):
        vmap(lambda x: functional.stacked_linear(x, weight, units="2-4", num_units=3))(
            torch.randn(5, 2, 6, dtype=torch.float64)
        )
    layer(x)  # and can again, outside
