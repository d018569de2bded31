"""Whole convolutional units by levels, norms folded: a launch a level."""

from __future__ import annotations

from ..ops._shapes import conv_level
from . import conv2d


def _forward(
    x, weights, biases, residual, units, stride, dilation, activation, out_activation,
    residual_activation,
):  # fmt: skip
    depth, given = len(weights), x
    for i, weight in enumerate(weights):
        last = i == depth - 1
        x = conv2d.level(
            x, weight, biases[i] if biases else None, conv_level(units, depth, i),
            stride if i == 0 else 1, dilation, out_activation if last else activation,
            residual=residual if last else None, residual_activation=residual_activation,
            like=given,
        )  # fmt: skip
    return x


OPERATORS = {"stacked_unit_conv2d": _forward}
