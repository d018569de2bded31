"""Modules of a network put in the place of others."""

from __future__ import annotations

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether someone watches or changes what goes through ``module``."""
    return any(
        (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Puts ``new[module]`` in every place below ``model`` where ``module`` stands."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
