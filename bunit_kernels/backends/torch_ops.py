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
        y = _by_kind(_batched_linear, x, weight, bias, layout.levels[0], dim=-1)
        return activate(activation, y)


def _batched_linear(x, weight, bias, units):
    groups = len(units)
    rows = x.reshape(-1, groups, x.shape[-1] // groups).transpose(0, 1)  # [U, B, c_in]
    blocks = weight.view(groups, -1, weight.shape[-1]).transpose(1, 2)  # [U, c_in, c_out]
    if bias is None:
        y = torch.bmm(rows, blocks)
    else:
        y = torch.baddbmm(bias.view(groups, 1, -1), rows, blocks)
    return y.transpose(0, 1).reshape(*x.shape[:-1], weight.shape[0])


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
