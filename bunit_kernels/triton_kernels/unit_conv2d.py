"""Whole convolutional units by levels, norms folded: a launch a level."""

from __future__ import annotations

from ..ops._shapes import conv_level
from . import conv2d


def _forward(
    x, weights, biases, residual, units, stride, dilation, shuffle, activation, out_activation,
    residual_activation,
):  # fmt: skip
    check_unshuffled(shuffle)
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


def check_unshuffled(shuffle):
    if shuffle:
        raise ValueError("shuffle is for the CPU: outputs of Triton's kernels are shuffled after")


OPERATORS = {"stacked_unit_conv2d": _forward}
