"""What the backbones start from: He's initialisation, unit by unit in stacked layers."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import StackedConv2d


@torch.no_grad()
def initialise(model: nn.Module, linear_std: float | None = None) -> None:
    """Draws every convolution anew from a normal distribution of variance ``2 / fan_out``
    (He et al., "Delving Deep into Rectifiers", eq. 14, as torchvision's networks do); biases start
    at 0. In a stacked layer ``fan_out`` is that of the unit's own level.

    Args:
        linear_std: standard deviation of linear layers, whose biases then start at 0; ``None``
            leaves them as PyTorch made them.
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
            _initialise_units(module)


def _initialise_units(layer: StackedConv2d) -> None:
    for level, weight in zip(layer.layout.levels, layer.weights, strict=True):
        stds = [(2 / (c_out * k * k)) ** 0.5 for _, c_out, k in level.blocks]
        if level.uniform:
            weight.normal_(0.0, stds[0])
        else:
            for part, std in zip(level.unpack(weight), stds, strict=True):
                part.normal_(0.0, std)
    for bias in layer.biases or ():
        nn.init.zeros_(bias)
