"""PyTorch's own operators: one grouped convolution or batched product for each kind of unit.

This is also the form that exports to ONNX.
"""

from __future__ import annotations

from itertools import groupby

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
        if not all(level.uniform for level in layout.levels):
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
    gathered, and puts the outputs back in the units' order. Equal neighbours stay together."""
    if level.uniform:
        return op(x, weight, bias, range(len(level.blocks)))
    kinds = level.kinds()
    sized = groupby(zip(level.blocks, level.weight_sizes, strict=True))
    runs = [(*block_and_size, len(list(units))) for block_and_size, units in sized]
    out_widths = [count * c_out for (_, c_out, _), _, count in runs]
    xs = x.split([count * c_in for (c_in, _, _), _, count in runs], dim)
    ws = weight.reshape(-1).split([count * size for _, size, count in runs])
    bs = None if bias is None else bias.split(out_widths)
    outputs = [None] * len(runs)
    for block, units in kinds.items():
        (c_in, _, k), own = block, [i for i, (other, *_) in enumerate(runs) if other == block]
        y = op(
            _joined([xs[i] for i in own], dim),
            _joined([ws[i] for i in own]).view(-1, c_in, *(() if k is None else (k, k))),
            None if bs is None else _joined([bs[i] for i in own]),
            units,
        )
        for i, y_i in zip(own, y.split([out_widths[i] for i in own], dim), strict=True):
            outputs[i] = y_i
    return torch.cat(outputs, dim)


def _joined(parts, dim=0):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
