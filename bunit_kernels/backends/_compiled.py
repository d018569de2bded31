"""What the backends of compiled kernels share: each operation is an operator of csrc/schema.cpp,
but that whole units which no such operator takes go level by level."""

from __future__ import annotations

from torch import Tensor

from ..layout import ConvGeometry
from ..ops import OPERATORS, call
from ._by_level import ByLevel, finished
from .base import BatchStats, UnitActivations


class Compiled(ByLevel):
    """``ops`` is ``torch.ops``' namespace of the operators.

    ``shuffles`` says whether whole convolutional units write shuffled outputs, in which a residual
    is theirs to add; elsewhere both follow.
    """

    shuffles = False

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
        if geometry.rows is None:
            return super().unit_conv2d(x, weights, biases, geometry, activations, residual)
        later = geometry.layout.shuffle and not self.shuffles
        y = self._call(
            "stacked_unit_conv2d", x, weights, biases, None if later else residual, geometry.rows,
            geometry.stride, geometry.dilation, geometry.layout.shuffle and self.shuffles,
            activations.hidden, activations.out, activations.residual,
        )  # fmt: skip
        return finished(x, y, geometry.layout, residual, activations.residual) if later else y

    def unit_linear(self, x, weights, biases, layout, activations):
        return self._call(
            "stacked_unit_linear", x, weights, biases, layout.linear_rows, activations.hidden,
            activations.out,
        )  # fmt: skip

    def unit_conv2d_train(self, x, weights, gammas, betas, geometry, activations, eps, residual):
        if geometry.rows is None:
            return super().unit_conv2d_train(
                x, weights, gammas, betas, geometry, activations, eps, residual
            )
        later = geometry.layout.shuffle and not self.shuffles
        out, stats = self._call(
            "stacked_unit_conv2d_train", x, weights, gammas, betas, None if later else residual,
            geometry.rows, geometry.stride, geometry.dilation,
            geometry.layout.shuffle and self.shuffles, eps, self.recomputes(x, geometry),
            activations.hidden, activations.out, activations.residual,
        )  # fmt: skip
        if later:
            out = finished(x, out, geometry.layout, residual, activations.residual)
        channels = [level.out_channels for level in geometry.layout.levels]
        mean, _, var = stats.detach()
        means, variances = mean.split(channels), var.split(channels)
        return out, list(map(BatchStats, means, variances))

    def level_train(self, x, weight, gamma, beta, level, activation, eps):
        activations = UnitActivations(out=activation)
        return self.unit_conv2d_train(x, [weight], [gamma], [beta], level, activations, eps, None)

    def recomputes(self, x: Tensor, geometry: ConvGeometry) -> bool:
        """Whether training makes the first level's output again instead of keeping it."""
        return False
