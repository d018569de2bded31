"""PyTorch's own operators: one grouped convolution or batched product for each kind of unit.

This is also the form that exports to ONNX.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import activate
from ._by_level import ByLevel, in_format_of


class TorchOps(ByLevel):
    name = "torch"

    def why_not(self, device, dtype):
        return None

    def conv2d(self, x, weight, bias, geometry, activation):
        def grouped_conv(x, weight, bias, units):
            pad = geometry.pads[units[0]]
            return F.conv2d(
                x, weight, bias, geometry.stride, pad, geometry.dilation, groups=len(units)
            )

        y = _by_kind(grouped_conv, x, weight, bias, geometry.layout.levels[0], dim=1)
        return activate(activation, in_format_of(x, y))

    def linear(self, x, weight, bias, layout, activation):
        def batched(x, weight, bias, units):
            return _by_row(_product(_by_unit(x, len(units)), weight, bias), x.shape)

        y = _by_kind(batched, x, weight, bias, layout.levels[0], dim=-1)
        return activate(activation, y)

    def unit_linear(self, x, weights, biases, layout, activations):
        if any(len(level.kinds()) > 1 for level in layout.levels):
            return super().unit_linear(x, weights, biases, layout, activations)
        y = _by_unit(x, layout.num_units)  # and so until the end
        for i, weight in enumerate(weights):
            y = _product(y, weight, biases[i] if biases else None)
            y = activate(activations.out if i == len(weights) - 1 else activations.hidden, y)
        return _by_row(y, x.shape)


def _by_unit(x, units):
    """[..., units * C] as [units, rows, C], a view."""
    return x.reshape(-1, units, x.shape[-1] // units).transpose(0, 1)


def _by_row(y, shape):
    """[units, rows, C] as [..., units * C], with the leading dimensions of ``shape``."""
    return y.transpose(0, 1).reshape(*shape[:-1], y.shape[0] * y.shape[2])


def _product(x, weight, bias):
    """[units, rows, c_in] -> [units, rows, c_out], the weight as packed."""
    blocks = weight.view(x.shape[0], -1, weight.shape[-1]).transpose(1, 2)
    if bias is None:
        return torch.bmm(x, blocks)
    return torch.baddbmm(bias.view(x.shape[0], 1, -1), x, blocks)


def _by_kind(op, x, weight, bias, level, dim):
    """Runs ``op(x, weight, bias, units)`` once for each kind of unit, on that kind's channels
    gathered, and puts the outputs back in the units' order."""
    kinds = level.kinds()
    if len(kinds) == 1:
        return op(x, weight, bias, range(len(level.blocks)))
    xs = x.split(level.in_widths, dim)
    ws = level.unpack(weight)
    bs = None if bias is None else bias.split(level.out_widths)
    outputs = [None] * len(level.blocks)
    for (_, c_out, _), units in kinds.items():
        y = op(
            torch.cat([xs[u] for u in units], dim),
            torch.cat([ws[u] for u in units]),
            None if bs is None else torch.cat([bs[u] for u in units]),
            units,
        )
        for u, y_u in zip(units, y.split(c_out, dim), strict=True):
            outputs[u] = y_u
    return torch.cat(outputs, dim)
