"""Gradients of the fused activations, through PyTorch's own backward operators."""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten

#: Activations whose gradient their output tells: nothing has to be recomputed for them.
FROM_OUTPUT = {
    "identity": lambda grad, y: grad,
    "relu": lambda grad, y: aten.threshold_backward(grad, y, 0),
    "relu6": lambda grad, y: aten.hardtanh_backward(grad, y, 0.0, 6.0),
    "leaky_relu": lambda grad, y: aten.leaky_relu_backward(grad, y, 0.01, True),
}


def _silu_grad(grad, z):
    if not torch.is_grad_enabled():
        return aten.silu_backward(grad, z)
    s = z.sigmoid()  # PyTorch's operator has no derivative of its own
    return grad * s * (1 + z * (1 - s))


#: Activations whose gradient needs their input.
FROM_INPUT = {
    "gelu": lambda grad, z: aten.gelu_backward(grad, z),
    "silu": _silu_grad,
    "hardswish": lambda grad, z: aten.hardswish_backward(grad, z),
}


def needs_input(activation: str) -> bool:
    return activation in FROM_INPUT


def activation_grad(activation: str, grad: Tensor, saved: Tensor) -> Tensor:
    """Gradient before the activation; ``saved`` is its input where :func:`needs_input`, else its
    output."""
    return (FROM_INPUT.get(activation) or FROM_OUTPUT[activation])(grad, saved)
