"""Whole linear units: one launch where they fit registers, else a launch a level."""

from __future__ import annotations

import torch

from ..ops._shapes import linear_level, linear_rows
from ..ops.unit_linear import backward_by_level
from . import linear, linear_units


def _forward(x, weights, biases, units, activation, out_activation):
    if _fit(units, len(weights), x.dtype):
        return linear_units.forward(x, weights, biases, units, activation, out_activation)
    depth = len(weights)
    for i, weight in enumerate(weights):
        name = out_activation if i == depth - 1 else activation
        bias = biases[i] if biases else None
        x = linear.level(x, weight, bias, linear_level(units, depth, i), name)
    return x


def _backward(grad, x, weights, biases, units, activation, out_activation):
    depth = len(weights)
    largest = [
        max(widths) for widths in zip(*(w for _, w in linear_rows(units, depth)), strict=True)
    ]
    if _fit(units, depth, x.dtype) and linear_units.takes_backward(largest):
        return linear_units.backward(grad, x, weights, biases, units, activation, out_activation)
    return backward_by_level(
        torch.ops.bunit_triton, grad, x, weights, biases, units, activation, out_activation
    )


def _fit(units, depth, dtype):
    widths = (width for _, widths in linear_rows(units, depth) for width in widths)
    return linear_units.takes(depth, widths, dtype)


OPERATORS = {"stacked_unit_linear": _forward, "stacked_unit_linear_backward": _backward}
