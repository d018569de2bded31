"""The loop over units, as plain as can be: every other backend is tested against it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..activations import activate
from . import limits
from ._by_level import ByLevel, in_format_of


class Reference(ByLevel):
    name = "reference"
    limits = limits.NONE

    def why_not(self, device, dtype):
        return None

    def conv2d(self, x, weight, bias, geometry, activation):
        level = geometry.layout.levels[0]
        xs = x.split(level.in_widths, dim=1)
        ws = level.unpack(weight)
        bs = _per_unit(bias, level)
        outputs = []
        for x_u, w_u, b_u, unit in zip(xs, ws, bs, level.units, strict=True):
            pad = geometry.pad(unit.kernel)
            y_u = F.conv2d(x_u, w_u, b_u, geometry.stride, pad, geometry.dilation, unit.groups)
            outputs.append(activate(activation, y_u))
        return in_format_of(x, torch.cat(outputs, dim=1))

    def linear(self, x, weight, bias, layout, activation):
        level = layout.levels[0]
        xs = x.split(level.in_widths, dim=-1)
        ws = level.unpack(weight)
        bs = _per_unit(bias, level)
        outputs = []
        for x_u, w_u, b_u in zip(xs, ws, bs, strict=True):
            outputs.append(activate(activation, F.linear(x_u, w_u, b_u)))
        return torch.cat(outputs, dim=-1)


def _per_unit(bias, level):
    return [None] * len(level.units) if bias is None else bias.split(level.out_widths)
