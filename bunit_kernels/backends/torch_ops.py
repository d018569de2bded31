"""PyTorch's own operators: one grouped convolution or batched product for each kind of block.

This is also the form that exports to ONNX.
"""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F

from ..activations import activate
from . import limits
from ._by_level import ByLevel, in_format_of


class TorchOps(ByLevel):
    name = "torch"
    limits = limits.NONE

    def why_not(self, device, dtype):
        return None

    def conv2d(self, x, weight, bias, geometry, activation):
        def grouped_conv(x, weight, bias, block, count):
            kernel, stride = block[2], geometry.stride
            pad = geometry.pad(kernel)
            if kernel == 1 and pad == 0 and stride > 1:
                # PyTorch 2.13 and 2.14 gave a wrong gradient of such a weight on a processor with
                # AVX2, for channels_last images and a count of 1.
                x, stride = x[:, :, ::stride, ::stride], 1
            return F.conv2d(x, weight, bias, stride, pad, geometry.dilation, groups=count)

        y = _by_kind(grouped_conv, x, weight, bias, geometry.layout.levels[0], dim=1)
        return activate(activation, in_format_of(x, y))

    def linear(self, x, weight, bias, layout, activation):
        def batched(x, weight, bias, block, count):
            return _by_row(_product(_by_unit(x, count), weight, bias), x.shape)

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
    """Runs ``op(x, weight, bias, block, count)`` once for each kind of block, on the channels of
    the ``count`` blocks of that kind gathered, and puts the outputs back in order. Equal neighbours
    stay together."""
    if level.uniform:
        return op(x, weight, bias, level.blocks[0], len(level.blocks))
    runs = [(block, len(list(blocks))) for block, blocks in groupby(level.blocks)]
    out_widths = [count * c_out for (_, c_out, _), count in runs]
    xs = x.split([count * c_in for (c_in, _, _), count in runs], dim)
    sizes = [count * c_in * c_out * (k or 1) ** 2 for (c_in, c_out, k), count in runs]
    ws = weight.reshape(-1).split(sizes)
    bs = None if bias is None else bias.split(out_widths)
    outputs = [None] * len(runs)
    for block, indices in level.kinds().items():
        (c_in, _, k), own = block, [i for i, (other, _) in enumerate(runs) if other == block]
        y = op(
            _joined([xs[i] for i in own], dim),
            _joined([ws[i] for i in own]).view(-1, c_in, *(() if k is None else (k, k))),
            None if bs is None else _joined([bs[i] for i in own]),
            block,
            len(indices),
        )
        for i, y_i in zip(own, y.split([out_widths[i] for i in own], dim), strict=True):
            outputs[i] = y_i
    return torch.cat(outputs, dim)


def _joined(parts, dim=0):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
