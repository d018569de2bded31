"""What the backends of compiled kernels share: each operation is an operator of csrc/schema.cpp."""

from __future__ import annotations

from torch import Tensor

from ..layout import ConvGeometry
from ..ops import OPERATORS, call
from .base import BatchStats

#: Multiply-adds a value of the first level, of all units on average, up to which making it again on
#: a CPU takes about as long as keeping it, or less: in NCHW and in channels_last.
RECOMPUTED_TAPS = 18, 36


def recomputes(x: Tensor, geometry: ConvGeometry) -> bool:
    """Whether training makes the first level's output again instead of keeping it: on CPUs, where
    that output is twice as large as the input or larger and quickly made. It halves what a layer of
    2-4-2 units keeps. Measured by ``python bench/recompute.py``."""
    if x.device.type != "cpu" or geometry.layout.depth == 1:
        return False
    first = geometry.layout.levels[0]
    widens = first.out_channels >= 2 * first.in_channels * geometry.stride**2
    most = RECOMPUTED_TAPS[x.stride(1) == 1 and not x.is_contiguous()]
    return widens and sum(first.weight_sizes) <= most * first.out_channels


class Compiled:
    """``ops`` is ``torch.ops``' namespace of the operators."""

    def __init__(self, ops):
        self.ops = ops

    def _call(self, name, *inputs):
        return call(OPERATORS[name], self.ops, *inputs)

    def conv2d(self, x, weight, bias, geometry, activation):
        return self._call(
            "stacked_conv2d", x, weight, bias, geometry.rows, geometry.stride, geometry.dilation,
            activation,
        )  # fmt: skip

    def linear(self, x, weight, bias, layout, activation):
        return self._call("stacked_linear", x, weight, bias, layout.linear_rows, activation)

    def unit_conv2d(self, x, weights, biases, geometry, activations, residual):
        return self._call(
            "stacked_unit_conv2d", x, weights, biases, residual, geometry.rows, geometry.stride,
            geometry.dilation, activations.hidden, activations.out, activations.residual,
        )  # fmt: skip

    def unit_linear(self, x, weights, biases, layout, activations):
        return self._call(
            "stacked_unit_linear", x, weights, biases, layout.linear_rows, activations.hidden,
            activations.out,
        )  # fmt: skip

    def unit_conv2d_train(self, x, weights, gammas, betas, geometry, activations, eps, residual):
        out, stats = self._call(
            "stacked_unit_conv2d_train", x, weights, gammas, betas, residual, geometry.rows,
            geometry.stride, geometry.dilation, eps, recomputes(x, geometry),
            activations.hidden, activations.out, activations.residual,
        )  # fmt: skip
        channels = [level.out_channels for level in geometry.layout.levels]
        mean, _, var = stats.detach()
        means, variances = mean.split(channels), var.split(channels)
        return out, list(map(BatchStats, means, variances))
