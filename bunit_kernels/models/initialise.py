"""What the backbones start from: He's initialisation, unit by unit in stacked layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import StackedConv2d


@torch.no_grad()
def initialise(
    model: nn.Module, linear_std: float | None = None, near_identity: bool = False
) -> None:
    """Draws every convolution anew from a normal distribution of variance ``2 / fan_out``
    (He et al., "Delving Deep into Rectifiers", eq. 14, as torchvision's networks do); biases start
    at 0. In a stacked layer ``fan_out`` is that of the unit's own level, and of one group there.

    Args:
        linear_std: standard deviation of linear layers, whose biases then start at 0; ``None``
            leaves them as PyTorch made them.
        near_identity: stacked layers begin by passing their input on, twice as strong as what is
            drawn: for networks without shortcuts (Zagoruyko and Komodakis, "DiracNets", 2017).
            A unit's channels are few and each passes a ReLU twice, so that through many such layers
            little of the input comes, and of the gradient.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, StackedConv2d):
            _initialise_units(module, near_identity)


def _initialise_units(layer: StackedConv2d, near_identity: bool) -> None:
    for level, weight in zip(layer.layout.levels, layer.weights, strict=True):
        if weight.is_meta:
            continue  # nothing is stored, and a unit at a time takes seconds
        stds = [(2 / (c_out * k * k)) ** 0.5 for _, c_out, k in (u.block for u in level.units)]
        if level.uniform:
            weight.normal_(0.0, stds[0])
        else:
            for part, std in zip(level.unpack(weight), stds, strict=True):
                part.normal_(0.0, std)
        if near_identity:
            for unit, part in zip(level.units, level.unpack(weight), strict=True):
                for group in part.chunk(unit.groups):
                    _add_identity(group)
    for bias in layer.biases or ():
        nn.init.zeros_(bias)


def _add_identity(weight: Tensor) -> None:
    """Adds to the weight ``[c_out, c_in, k, k]`` of a unit, or of one of its groups, what copies
    input channels, by turns, to output channels (of more inputs than outputs each output has the
    sum of some). Of an input of variance 1 what is drawn makes one of ``2 * c_in / c_out``.
    """
    c_out, c_in, k, _ = weight.shape
    copies = max(1.0, c_in / c_out)
    strength = 2 * (2 * c_in / c_out) ** 0.5 / copies
    c = torch.arange(max(c_in, c_out), device=weight.device)
    weight[c % c_out, c % c_in, k // 2, k // 2] += strength
