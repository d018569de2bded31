"""Whole units out of level operations, for backends that have no fused form of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import activate
from .base import BatchStats


class ByLevel:
    """Adds the whole-unit operations to a backend that has ``conv2d`` and ``linear``."""

    def unit_conv2d(self, x, weights, biases, geometry, activations, residual):
        for i, level in enumerate(geometry.levels):
            name = activations.out if i == len(weights) - 1 else activations.hidden
            x = self.conv2d(x, weights[i], biases[i] if biases else None, level, name)
        return _add_residual(x, residual, activations.residual)

    def unit_linear(self, x, weights, biases, layout, activations):
        for i, stage in enumerate(layout.stages):
            name = activations.out if i == len(weights) - 1 else activations.hidden
            x = self.linear(x, weights[i], biases[i] if biases else None, stage, name)
        return x

    def unit_conv2d_train(self, x, weights, gammas, betas, geometry, activations, eps, residual):
        stats = []
        for i, level in enumerate(geometry.levels):
            z = self.conv2d(x, weights[i], None, level, "identity")
            # Momentum 1 turns the running statistics into this batch's own.
            mean, var = torch.zeros_like(gammas[i]), torch.zeros_like(gammas[i])
            x = F.batch_norm(z, mean, var, gammas[i], betas[i], True, 1.0, eps)
            stats.append(BatchStats(mean, var))
            x = activate(activations.out if i == len(weights) - 1 else activations.hidden, x)
        return _add_residual(x, residual, activations.residual), stats


def _add_residual(x, residual, activation):
    return x if residual is None else activate(activation, x + residual)
