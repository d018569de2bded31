"""Whole units out of level operations, for backends that have no fused form of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .._tensor_format import format_of
from .._torch_private import transforms_active
from ..activations import activate
from .base import BatchStats


class ByLevel:
    """Adds the whole-unit operations to a backend that has ``conv2d`` and ``linear``."""

    def unit_conv2d(self, x, weights, biases, geometry, activations, residual):
        y = self.inside(x, geometry)
        for i, level in enumerate(geometry.levels):
            name = activations.out if i == len(weights) - 1 else activations.hidden
            y = self.conv2d(y, weights[i], biases[i] if biases else None, level, name)
        return finished(x, y, geometry.layout, residual, activations.residual)

    def unit_linear(self, x, weights, biases, layout, activations):
        for i, stage in enumerate(layout.stages):
            name = activations.out if i == len(weights) - 1 else activations.hidden
            x = self.linear(x, weights[i], biases[i] if biases else None, stage, name)
        return x

    def unit_conv2d_train(self, x, weights, gammas, betas, geometry, activations, eps, residual):
        y, stats = self.inside(x, geometry), []
        for i, level in enumerate(geometry.levels):
            name = activations.out if i == len(weights) - 1 else activations.hidden
            y, of_level = self.level_train(y, weights[i], gammas[i], betas[i], level, name, eps)
            stats += of_level
        return finished(x, y, geometry.layout, residual, activations.residual), stats

    def level_train(self, x, weight, gamma, beta, level, activation, eps):
        """``unit_conv2d_train`` of one level."""
        z = self.conv2d(x, weight, None, level, "identity")
        # Momentum 1 turns the running statistics into this batch's own.
        mean, var = torch.zeros_like(gamma), torch.zeros_like(gamma)
        # PyTorch's gradient for channels_last images takes a gamma with gaps for one without.
        y = F.batch_norm(z, mean, var, gamma.contiguous(), beta, True, 1.0, eps)
        return activate(activation, y), [BatchStats(mean, var)]

    def inside(self, x, geometry):
        """``x`` in the memory format that the levels are to have."""
        return x


def in_format_of(x, y):
    """``y`` in the memory format of ``x``, which one-channel tensors do not show and channels_last
    weights override. Under torch.func's transforms, which do not tell formats, as it comes."""
    if transforms_active():
        return y
    return y.contiguous(memory_format=format_of(x))


def finished(x, y, layout, residual, activation):
    """A layer's output from the units' concatenated outputs ``y`` of the input ``x``: in the
    layer's order and the input's format, with the residual."""
    y = in_format_of(x, layout.ordered(y, 1))
    return y if residual is None else activate(activation, y + residual)
