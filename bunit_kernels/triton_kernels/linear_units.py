"""Linear units of up to four levels in one launch, forward and backward.

A program takes one unit and some rows. Hidden activations stay in registers; the backward pass
makes them again. Widths are filled up to 16 with zeros for ``tl.dot``, and what is filled up is set
to zero again behind each level: a NaN there would reach the others.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl

from ..ops._shapes import linear_rows
from .activations import activate, activation_grad
from .conv_grad_weight import add_parts
from .conv_level import padded
from .tf32 import matmul_allows_tf32, precision
from .tuning import INTERPRETED, tuned
from .work import MOST_LEVELS, linear_work, processors

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps)
    for block, warps in ((64, 4), (128, 4), (32, 2), (128, 8))
]
BACKWARD_CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps)
    for block, warps in ((32, 4), (32, 8), (64, 4), (64, 8), (16, 4), (16, 8))
]
KEY = ("DEPTH", "W0", "W1", "W2", "W3", "W4", "BIAS", "HIDDEN", "OUT")


def _backward_candidates(configs, given):
    """``tl.dot`` of float32 unrolls to multiply-adds with all operands in registers: few rows at a
    time, as also for the sums of wide units. Others than these spill."""
    if given["x"].dtype == torch.float32:
        fit = ((16, 4), (32, 8))
    elif max(given[f"W{i}"] for i in range(5)) >= 64:
        fit = ((32, 8), (16, 8))
    else:
        fit = ((32, 4), (64, 4), (64, 8))
    by_size = {(config.kwargs["BLOCK"], config.num_warps): config for config in configs}
    return [by_size[size] for size in fit]


@triton.jit
def _weight(weight, row, LEVEL: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr):
    """A level's weight of one unit, [INS, OUTS] with zeros beyond its widths."""
    c_in, c_out = tl.load(row + LEVEL), tl.load(row + LEVEL + 1)
    i, o = tl.arange(0, INS), tl.arange(0, OUTS)
    at = tl.load(row + 7 + LEVEL) + o[None, :] * c_in + i[:, None]
    return tl.load(weight + at, (i < c_in)[:, None] & (o < c_out)[None, :], 0.0)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _level(
    h, weight, bias, row, LEVEL: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
    BIAS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """The level's output before its activation, [rows, OUTS], 0 beyond its width."""
    o = tl.arange(0, OUTS)
    held = o < tl.load(row + LEVEL + 1)
    z = _product(h, _weight(weight, row, LEVEL, INS, OUTS), PRECISION, WIDEN)
    if BIAS:
        z += tl.load(bias + tl.load(row + 11 + LEVEL) + o, held, 0.0).to(tl.float32)[None, :]
    return tl.where(held[None, :], z, 0.0)


@triton.jit
def _activated(z, NAME: tl.constexpr, dtype: tl.constexpr):
    return activate(z, NAME).to(dtype)


@triton.jit
def _rows_of(x, line, inside, channels, first, width, WIDTH: tl.constexpr):
    """A unit's values of some rows, [rows, WIDTH]."""
    c = tl.arange(0, WIDTH)
    at = line[:, None] * channels + (first + c)[None, :]
    return tl.load(x + at, inside[:, None] & (c < width)[None, :], 0.0)


@tuned(CONFIGS, KEY)
@triton.jit(do_not_specialize=["rows"])
def forward_kernel(
    x, y, w0, w1, w2, w3, b0, b1, b2, b3, table, units, rows, ins, outs,
    DEPTH: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    W3: tl.constexpr, W4: tl.constexpr, BIAS: tl.constexpr, HIDDEN: tl.constexpr,
    OUT: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0) % units
    line = (tl.program_id(0) // units).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = line < rows
    row = table + unit * 15
    dtype: tl.constexpr = x.dtype.element_ty
    LAST: tl.constexpr = W1 if DEPTH == 1 else W2 if DEPTH == 2 else W3 if DEPTH == 3 else W4
    h = _rows_of(x, line, inside, ins, tl.load(row + 5), tl.load(row), W0)
    z = _level(h, w0, b0, row, 0, W0, W1, BIAS, PRECISION, WIDEN)
    if DEPTH > 1:
        h = _activated(z, HIDDEN, dtype)
        z = _level(h, w1, b1, row, 1, W1, W2, BIAS, PRECISION, WIDEN)
    if DEPTH > 2:
        h = _activated(z, HIDDEN, dtype)
        z = _level(h, w2, b2, row, 2, W2, W3, BIAS, PRECISION, WIDEN)
    if DEPTH > 3:
        h = _activated(z, HIDDEN, dtype)
        z = _level(h, w3, b3, row, 3, W3, W4, BIAS, PRECISION, WIDEN)
    c = tl.arange(0, LAST)
    to = y + line[:, None] * outs + (tl.load(row + 6) + c)[None, :]
    mask = inside[:, None] & (c < tl.load(row + DEPTH))[None, :]
    tl.store(to, activate(z, OUT).to(dtype), mask)


@triton.jit
def _kept(z, inside, NAME: tl.constexpr, dtype: tl.constexpr):
    """Activations as factors of a weight's gradient: 0 in rows that do not exist, where an infinite
    bias or weight leaves what 0 times is NaN."""
    return tl.where(inside[:, None], activate(z, NAME), 0.0).to(dtype)


@triton.jit
def _back(
    g, z, h, weight, row, inside, LEVEL: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
    NAME: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Through one level: gradients of its input, weight [OUTS, INS] and bias over these rows."""
    held = inside[:, None] & (tl.arange(0, OUTS) < tl.load(row + LEVEL + 1))[None, :]
    g = tl.where(held, activation_grad(g, z, NAME), 0.0)
    low = g.to(h.dtype)
    of_weight = _product(tl.trans(low), h, PRECISION, WIDEN)
    of_input = _product(low, tl.trans(_weight(weight, row, LEVEL, INS, OUTS)), PRECISION, WIDEN)
    return of_input, of_weight, tl.sum(g, 0)


@triton.jit
def _store_sums(
    to, biases, of_weight, of_bias, row, LEVEL: tl.constexpr, INS: tl.constexpr,
    OUTS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A unit's sums of one level to where the level's weights and biases begin in a part."""
    c_in, c_out = tl.load(row + LEVEL), tl.load(row + LEVEL + 1)
    i, o = tl.arange(0, INS), tl.arange(0, OUTS)
    at = tl.load(row + 7 + LEVEL) + o[:, None] * c_in + i[None, :]
    tl.store(to + at, of_weight, (o < c_out)[:, None] & (i < c_in)[None, :])
    if BIAS:
        tl.store(biases + tl.load(row + 11 + LEVEL) + o, of_bias, o < c_out)


@tuned(BACKWARD_CONFIGS, KEY, _backward_candidates)
@triton.jit(do_not_specialize=["rows", "share"])
def backward_kernel(
    grad, x, grad_x, w0, w1, w2, w3, b0, b1, b2, b3, parts, table,
    p0, p1, p2, p3, q0, q1, q2, q3, part_size, units, rows, share, ins, outs,
    DEPTH: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    W3: tl.constexpr, W4: tl.constexpr, BIAS: tl.constexpr, HIDDEN: tl.constexpr,
    OUT: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``p``, ``q``: where a level's weights and biases begin in a part."""
    unit = tl.program_id(0) % units
    part = tl.program_id(0) // units
    row = table + unit * 15
    dtype: tl.constexpr = x.dtype.element_ty
    LAST: tl.constexpr = W1 if DEPTH == 1 else W2 if DEPTH == 2 else W3 if DEPTH == 3 else W4
    sum0, bias0 = tl.zeros([W1, W0], tl.float32), tl.zeros([W1], tl.float32)
    if DEPTH > 1:
        sum1, bias1 = tl.zeros([W2, W1], tl.float32), tl.zeros([W2], tl.float32)
    if DEPTH > 2:
        sum2, bias2 = tl.zeros([W3, W2], tl.float32), tl.zeros([W3], tl.float32)
    if DEPTH > 3:
        sum3, bias3 = tl.zeros([W4, W3], tl.float32), tl.zeros([W4], tl.float32)
    end = tl.minimum((part + 1) * share, rows)
    for begin in range(part * share, end, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        inside, line = at < end, at.to(tl.int64)
        h0 = _rows_of(x, line, inside, ins, tl.load(row + 5), tl.load(row), W0)
        z0 = _level(h0, w0, b0, row, 0, W0, W1, BIAS, PRECISION, WIDEN)
        if DEPTH > 1:
            h1 = _kept(z0, inside, HIDDEN, dtype)
            z1 = _level(h1, w1, b1, row, 1, W1, W2, BIAS, PRECISION, WIDEN)
        if DEPTH > 2:
            h2 = _kept(z1, inside, HIDDEN, dtype)
            z2 = _level(h2, w2, b2, row, 2, W2, W3, BIAS, PRECISION, WIDEN)
        if DEPTH > 3:
            h3 = _kept(z2, inside, HIDDEN, dtype)
            z3 = _level(h3, w3, b3, row, 3, W3, W4, BIAS, PRECISION, WIDEN)
        g = _rows_of(grad, line, inside, outs, tl.load(row + 6), tl.load(row + DEPTH), LAST)
        g = g.to(tl.float32)
        if DEPTH > 3:
            g, s, b = _back(g, z3, h3, w3, row, inside, 3, W3, W4, OUT, PRECISION, WIDEN)
            sum3, bias3 = sum3 + s, bias3 + b
        if DEPTH > 2:
            name: tl.constexpr = OUT if DEPTH == 3 else HIDDEN
            g, s, b = _back(g, z2, h2, w2, row, inside, 2, W2, W3, name, PRECISION, WIDEN)
            sum2, bias2 = sum2 + s, bias2 + b
        if DEPTH > 1:
            second: tl.constexpr = OUT if DEPTH == 2 else HIDDEN
            g, s, b = _back(g, z1, h1, w1, row, inside, 1, W1, W2, second, PRECISION, WIDEN)
            sum1, bias1 = sum1 + s, bias1 + b
        first: tl.constexpr = OUT if DEPTH == 1 else HIDDEN
        g, s, b = _back(g, z0, h0, w0, row, inside, 0, W0, W1, first, PRECISION, WIDEN)
        sum0, bias0 = sum0 + s, bias0 + b
        c = tl.arange(0, W0)
        to = grad_x + line[:, None] * ins + (tl.load(row + 5) + c)[None, :]
        tl.store(to, g.to(dtype), inside[:, None] & (c < tl.load(row))[None, :])
    own = parts + part.to(tl.int64) * part_size
    _store_sums(own + p0, own + q0, sum0, bias0, row, 0, W0, W1, BIAS)
    if DEPTH > 1:
        _store_sums(own + p1, own + q1, sum1, bias1, row, 1, W1, W2, BIAS)
    if DEPTH > 2:
        _store_sums(own + p2, own + q2, sum2, bias2, row, 2, W2, W3, BIAS)
    if DEPTH > 3:
        _store_sums(own + p3, own + q3, sum3, bias3, row, 3, W3, W4, BIAS)


def takes(depth: int, widths, dtype: torch.dtype) -> bool:
    """Whether units fit the registers: else they go level by level."""
    return depth <= MOST_LEVELS and max(widths) <= (32 if dtype == torch.float32 else 64)


def takes_backward(widths) -> bool:
    """Whether also the sums of all weights' gradients of a unit of ``widths`` fit them."""
    sides = [padded(width, 16) for width in widths]
    return sum(a * b for a, b in pairwise(sides)) <= 2048


def forward(x, weights, biases, units, activation, out_activation):
    """All levels of all units, of up to four levels."""
    depth = len(weights)
    work = linear_work(units, depth, x.device)
    outs = sum(count * widths[-1] for count, widths in linear_rows(units, depth))
    y = x.new_empty((*x.shape[:-1], outs))
    rows = y.numel() // outs
    if rows == 0:
        return y

    def grid(meta):
        return (work.units * triton.cdiv(rows, meta["BLOCK"]),)

    constants = _constants(work, depth, biases, activation, out_activation, x.dtype)
    with torch.cuda.device_of(x):
        forward_kernel[grid](
            x.contiguous(), y, *_four(weights, x), *_four(biases, x), work.table, work.units, rows,
            x.shape[-1], outs, **constants,
        )  # fmt: skip
    return y


def backward(grad, x, weights, biases, units, activation, out_activation):
    """Gradients of the input, of all weights and of all biases."""
    depth = len(weights)
    work = linear_work(units, depth, x.device)
    grad, x = grad.contiguous(), x.contiguous()
    outs, rows = grad.shape[-1], x.numel() // x.shape[-1]
    grad_x = torch.empty_like(x)
    of_weights = [w.new_empty(w.shape) for w in weights]
    of_biases = [b.new_empty(b.shape) for b in biases]
    if rows == 0:
        return grad_x, [w.zero_() for w in of_weights], [b.zero_() for b in of_biases]
    begins, size = [], 0
    for tensor in (*weights, *biases):
        begins.append(size)
        size += tensor.numel()
    wanted = triton.cdiv(4 * processors(x.device), work.units)
    count = max(1, min(wanted, triton.cdiv(rows, 128)))
    share = triton.cdiv(rows, count)
    count = triton.cdiv(rows, share)
    parts = torch.empty((count, size), dtype=torch.float32, device=x.device)
    unused = [0] * (MOST_LEVELS - depth)
    at_weights = [*begins[:depth], *unused]
    at_biases = [*begins[depth:], *unused] if biases else [0] * MOST_LEVELS
    with torch.cuda.device_of(x):
        backward_kernel[(work.units * count,)](
            grad, x, grad_x, *_four(weights, x), *_four(biases, x), parts, work.table, *at_weights,
            *at_biases, size, work.units, rows, share, x.shape[-1], outs,
            **_constants(work, depth, biases, activation, out_activation, x.dtype),
        )  # fmt: skip
        for tensor, begin in zip((*of_weights, *of_biases), begins, strict=True):
            add_parts(parts, tensor, begin)
    return grad_x, of_weights, of_biases


def _four(tensors, stand_in):
    """Four tensors for a kernel, those that it will not touch stood in for."""
    tensors = [t.contiguous() for t in tensors]
    return tensors + [stand_in] * (MOST_LEVELS - len(tensors))


def _constants(work, depth, biases, activation, out_activation, dtype) -> dict:
    widths = [padded(width, 16) for width in work.widths]
    widths += [16] * (MOST_LEVELS - depth)
    return {
        **{f"W{i}": width for i, width in enumerate(widths)},
        "DEPTH": depth, "BIAS": bool(biases), "HIDDEN": activation, "OUT": out_activation,
        "PRECISION": precision(dtype, matmul_allows_tf32()),
        "WIDEN": INTERPRETED and dtype != torch.float32,
    }  # fmt: skip
