"""What the backends of compiled kernels share: each operation is an operator of csrc/schema.cpp."""

from __future__ import annotations

from ..ops.unit_conv2d_train import unit_conv2d_train
from ..ops.unit_linear import unit_linear
from .base import BatchStats


class Compiled:
    """``ops`` is ``torch.ops``' namespace of the operators."""

    def __init__(self, ops):
        self.ops = ops

    def conv2d(self, x, weight, bias, geometry, activation):
        return self.ops.stacked_conv2d(
            x, weight, bias, geometry.rows, geometry.stride, geometry.dilation, activation
        )

    def linear(self, x, weight, bias, layout, activation):
        return self.ops.stacked_linear(x, weight, bias, layout.linear_rows, activation)

    def unit_conv2d(self, x, weights, biases, geometry, activations, residual):
        return self.ops.stacked_unit_conv2d(
            x, weights, biases, residual, geometry.rows, geometry.stride, geometry.dilation,
            activations.hidden, activations.out, activations.residual,
        )  # fmt: skip

    def unit_linear(self, x, weights, biases, layout, activations):
        return unit_linear(
            self.ops, x, weights, biases, layout.linear_rows, activations.hidden, activations.out
        )

    def unit_conv2d_train(self, x, weights, gammas, betas, geometry, activations, eps, residual):
        out, stats = unit_conv2d_train(
            self.ops, x, weights, gammas, betas, residual, geometry.rows, geometry.stride,
            geometry.dilation, eps, activations.hidden, activations.out, activations.residual,
        )  # fmt: skip
        channels = [level.out_channels for level in geometry.layout.levels]
        mean, _, var = stats.detach()
        means, variances = mean.split(channels), var.split(channels)
        return out, list(map(BatchStats, means, variances))
