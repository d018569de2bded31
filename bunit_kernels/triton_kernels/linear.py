"""Linear levels: narrow or mixed units by output channel, wide ones by unit through ``tl.dot``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..ops._shapes import linear_rows
from . import conv2d, linear_units
from .activations import activate
from .tf32 import matmul_allows_tf32
from .tuning import tuned
from .work import columns

CONFIGS = [
    triton.Config({"BLOCK": block, "COLUMNS": across}, num_warps=4)
    for block, across in ((16, 64), (32, 64), (8, 128), (64, 32))
]


@tuned(CONFIGS, ("MOST", "ACTIVATION", "BIAS"))
@triton.jit(do_not_specialize=["rows"])
def columns_kernel(
    x, weight, bias, y, table, rows, ins, outs,
    MOST: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Every output channel by itself, whatever its unit: lanes next to each other read what lies
    next to each other, or the same, and write what lies next to each other."""
    groups = tl.cdiv(outs, COLUMNS)
    row = (tl.program_id(0) // groups).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    held, inside = column < outs, row < rows
    first = tl.load(table + column, held, 0)
    number = tl.load(table + outs + column, held, 0)
    weights = weight + tl.load(table + 2 * outs + column, held, 0)
    step = tl.load(table + 3 * outs + column, held, 0)
    source = x + row[:, None] * ins + first[None, :]
    acc = tl.zeros([BLOCK, COLUMNS], tl.float32)
    for k in range(MOST):
        v = tl.load(source + k, inside[:, None] & (k < number)[None, :], 0.0).to(tl.float32)
        w = tl.load(weights + k * step, k < number, 0.0).to(tl.float32)
        acc += v * w[None, :]
    if BIAS:
        acc += tl.load(bias + column, held, 0.0).to(tl.float32)[None, :]
    acc = activate(acc, ACTIVATION)
    to = y + row[:, None] * outs + column[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), inside[:, None] & held[None, :])


def level(x, weight, bias, units, activation):
    """One level: block-diagonal linear map, bias, activation."""
    width = _width(units)
    if width is None:
        return _by_columns(x, weight, bias, units, activation, transposed=False)
    if linear_units.takes(1, (width,), x.dtype):
        biases = [] if bias is None else [bias]
        return linear_units.forward(x, [weight], biases, units, activation, activation)
    y = conv2d.level(
        _as_image(x), weight, bias, _as_convolution(units), 1, 1, activation,
        allows_tf32=matmul_allows_tf32,
    )  # fmt: skip
    return _as_rows(y, x)


def grad_input(grad, weight, units):
    """Gradient of a level's input."""
    if _width(units) is None:
        return _by_columns(grad, weight, None, units, "identity", transposed=True)
    image = _as_image(grad)
    ins = sum(count * widths[0] for count, widths in linear_rows(units, 1))
    size = (1, ins, *image.shape[2:])
    grad_image = conv2d.grad_input(
        image, weight, size, _as_convolution(units), 1, 1, allows_tf32=matmul_allows_tf32
    )
    return _as_rows(grad_image, grad)


def grad_weight(grad, x, weight_shape, units):
    """Gradients of a level's weight and bias."""
    return conv2d.grad_weight(
        _as_image(grad), _as_image(x), weight_shape, _as_convolution(units), 1, 1,
        allows_tf32=matmul_allows_tf32,
    )  # fmt: skip


def _width(units) -> int | None:
    """The wider side of units that are all alike and fill the tiles of matrix units."""
    widths = {tuple(widths) for _, widths in linear_rows(units, 1)}
    return max(*widths.pop()) if len(widths) == 1 and min(*next(iter(widths))) >= 16 else None


def _as_convolution(units) -> list[int]:
    """Rows of the 1x1 convolution that a level is."""
    rows = []
    for count, (c_in, c_out) in linear_rows(units, 1):
        rows += [count, 1, 0, c_in, c_out]
    return rows


def _as_image(x):
    """[..., C] as [1, C, rows, 1]."""
    return x.reshape(-1, x.shape[-1]).t()[None, :, :, None]


def _as_rows(image, like):
    """And back, with the leading dimensions of ``like``."""
    return image[0, :, :, 0].t().reshape(*like.shape[:-1], image.shape[1])


def _by_columns(x, weight, bias, units, activation, transposed):
    table, most = columns(units, transposed, x.device)
    outs = table.shape[1]
    y = x.new_empty((*x.shape[:-1], outs))
    rows = y.numel() // outs
    if rows == 0:
        return y
    weight = weight.contiguous()

    def grid(meta):
        return (triton.cdiv(outs, meta["COLUMNS"]) * triton.cdiv(rows, meta["BLOCK"]),)

    with torch.cuda.device_of(x):
        columns_kernel[grid](
            x.contiguous(), weight, weight if bias is None else bias.contiguous(), y, table, rows,
            x.shape[-1], outs, MOST=most, ACTIVATION=activation, BIAS=bias is not None,
        )  # fmt: skip
    return y


OPERATORS = {
    "stacked_linear": level,
    "stacked_linear_grad_input": grad_input,
    "stacked_linear_grad_weight": grad_weight,
}
