"""The activations a stacked layer can fuse: one table for modules, functions and kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """``module`` builds it for a reference loop, ``function`` applies it."""

    module: Callable[[], nn.Module]
    function: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    "relu": Activation(nn.ReLU, F.relu),
    "relu6": Activation(nn.ReLU6, F.relu6),
    "leaky_relu": Activation(nn.LeakyReLU, F.leaky_relu),  # slope 0.01, torch's default
    "gelu": Activation(nn.GELU, F.gelu),  # exact, by erf
    "silu": Activation(nn.SiLU, F.silu),
    "hardswish": Activation(nn.Hardswish, F.hardswish),
    "identity": Activation(nn.Identity, lambda x: x),
}


def check_activation(name: str, argument: str = "activation") -> str:
    """``name`` itself; ``ValueError`` where no such activation exists."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown {argument} {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return name


def activate(name: str, x: Tensor) -> Tensor:
    return ACTIVATIONS[name].function(x)


def activation_name(module: nn.Module) -> str:
    """The table's name for an activation module.

    Raises:
        ValueError: no activation of the table computes the same.
    """
    for name, activation in ACTIVATIONS.items():
        if type(module) is type(activation.module()) and _settings(module) == _settings(
            activation.module()
        ):
            return name
    raise ValueError(f"no activation of {', '.join(ACTIVATIONS)} is {module}")


def _settings(module: nn.Module) -> str:
    return module.extra_repr().replace("inplace=True", "").strip(", ")
