"""Stacked layers that several test files build, and the loop that each stands for."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bunit_kernels import PAPER_POOL, StackedConv2d, StackedLinear

CONV_LAYERS = {
    "uniform": ("2-4-2", {"num_units": 5}),
    "one unit": ("3-5-2", {}),
    "hybrid": (PAPER_POOL, {}),
    "kernels": (["1-2-1", "2-1-2:k5", "3-2-1:k1"], {"stride": 2}),
    "stride": ("2-4-4", {"num_units": 3, "stride": 2}),
    "one level": ("2-4", {"num_units": 3}),
    "deep": ("1-2-3-2", {"num_units": 3, "activation": "leaky_relu"}),
    "int padding": ("2-4-2", {"num_units": 3, "padding": 0}),
    "dilated": ("2-4-2", {"num_units": 3, "dilation": 2}),
    "pointwise": ("4-8-4", {"num_units": 3, "kernel_size": 1, "out_activation": "identity"}),
    "bias and norm": ("2-4-2", {"num_units": 3, "bias": True, "activation": "gelu"}),
    "no norm": ("2-4-2", {"num_units": 3, "norm": None, "activation": "silu"}),
    "no norm, no bias": (["2-4-2", "1-1-1"], {"norm": None, "bias": False}),
    "light": ("4-12-12-4:k1,3,1:g1,12,1", {"num_units": 3, "out_activation": "identity"}),
    "light hybrid": (["4-8-8-2:k1,3,1:g1,8,1", "2-3-4-3", "2-4-2-4:k5:g2"], {"stride": 2}),
    "wide": ("16-16-16", {"num_units": 2, "out_activation": "relu6"}),
}

LINEAR_LAYERS = {
    "uniform": ("4-8-4", {"num_units": 5}),
    "one level": ("4-8", {"num_units": 3}),
    "hybrid": (["1-2-1", "3-2-1", "2-1-2"], {"activation": "gelu"}),
    "norm": ("4-8-4", {"num_units": 3, "norm": "batch"}),
    "norm and bias": (["4-8-4", "1-2-3"], {"norm": "batch", "bias": True}),
    "no bias": ("4-3-2-1", {"num_units": 3, "bias": False, "out_activation": "identity"}),
}


def conv_layer(name: str, **changes) -> StackedConv2d:
    units, options = CONV_LAYERS[name]
    return lived(StackedConv2d(units, **{**options, **changes}))


def linear_layer(name: str, **changes) -> StackedLinear:
    units, options = LINEAR_LAYERS[name]
    return lived(StackedLinear(units, **{**options, **changes}))


@torch.no_grad()
def lived(layer: nn.Module) -> nn.Module:
    """The layer with norms as after some training, and not at their start of zeros and ones."""
    for norm in layer.norms or ():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked.fill_(3)
    return layer


def run_units(units: nn.ModuleList, x: Tensor, dim: int = 1) -> Tensor:
    """The loop over ``to_units()``: each on its share of the channels."""
    firsts = [
        next(m for m in unit.modules() if isinstance(m, nn.Conv2d | nn.Linear)) for unit in units
    ]
    widths = [getattr(m, "in_channels", None) or m.in_features for m in firsts]
    parts = x.split(widths, dim)
    return torch.cat([unit(part) for unit, part in zip(units, parts, strict=True)], dim)


def gradients_by_unit(layer: nn.Module) -> list[Tensor]:
    """The layer's gradients in the form of a loop over its units, by ``to_units``."""
    of = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter, mine in zip(of.parameters(), layer.parameters(), strict=True):
            parameter.copy_(mine.grad)
    return [p.detach() for p in of.to_units().parameters()]


def image(layer: StackedConv2d, batch: int = 3, size: tuple[int, int] = (8, 9)) -> Tensor:
    weight = layer.weights[0]
    return torch.randn(batch, layer.in_channels, *size, dtype=weight.dtype, device=weight.device)
