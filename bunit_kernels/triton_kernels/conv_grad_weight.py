"""Gradients of a convolutional level's weight and bias, the same whatever runs first.

A program takes one unit, one tap, a block of channels on both sides and a share of all output
pixels, and writes its sums to a workspace; a second launch adds the shares in their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .activations import activate
from .conv_level import VARYING, padded, precision, uses_dot
from .tuning import INTERPRETED, tuned
from .work import ConvWork, processors

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=2)
    for block, warps in ((64, 4), (128, 4), (32, 2))
]
KEY = ("STRIDE", "DILATION", "K", "OUT_BLOCK", "IN_BLOCK", "DOT", "NORM", "BIAS", "CHANNELS_LAST")


@tuned(CONFIGS, KEY)
@triton.jit(do_not_specialize=["share", *VARYING, "g_n", "g_h", "x_n", "x_h"])
def conv_grad_weight_kernel(
    grad, x, parts, table, mean, scale, shift,
    units, taps, part_size, bias_at, share, pixels, in_h, in_w, out_h, out_w,
    g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, K: tl.constexpr,
    OUT_BLOCK: tl.constexpr, OUT_BLOCKS: tl.constexpr,
    IN_BLOCK: tl.constexpr, IN_BLOCKS: tl.constexpr,
    DOT: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``share`` pixels a program; ``taps`` are those of the largest kernel; ``NORM`` is the
    activation after the norm of x, or None."""
    unit = tl.program_id(0) % units
    rest = tl.program_id(0) // units
    tap = rest % taps
    out_block = rest // taps % OUT_BLOCKS
    in_block = rest // taps // OUT_BLOCKS % IN_BLOCKS
    part = rest // taps // OUT_BLOCKS // IN_BLOCKS
    row = table + unit * 7
    first_in, c_in = tl.load(row), tl.load(row + 1)
    first_out, c_out = tl.load(row + 2), tl.load(row + 3)
    k, pad, first_weight = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    if tap < k * k:
        out = out_block * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
        into = in_block * IN_BLOCK + tl.arange(0, IN_BLOCK)
        has_out, has_in = out < c_out, into < c_in
        acc = tl.zeros([OUT_BLOCK, IN_BLOCK], tl.float32)
        total = tl.zeros([OUT_BLOCK], tl.float32)
        for first in range(part * share, tl.minimum((part + 1) * share, pixels), BLOCK):
            pixel = first + tl.arange(0, BLOCK)
            inside = pixel < tl.minimum((part + 1) * share, pixels)
            image = (pixel // (out_h * out_w)).to(tl.int64)
            out_row = pixel // out_w % out_h
            out_column = pixel % out_w
            at_row = out_row * STRIDE + tap // k * DILATION - pad
            at_column = out_column * STRIDE + tap % k * DILATION - pad
            reached = inside & (at_row >= 0) & (at_row < in_h)
            reached &= (at_column >= 0) & (at_column < in_w)
            g = image * g_n + out_row.to(tl.int64) * g_h + out_column * g_w
            channel = (first_out + out).to(tl.int64)
            g = tl.load(
                grad + g[:, None] + channel[None, :] * g_c, inside[:, None] & has_out[None, :], 0.0
            )
            at = image * x_n + at_row.to(tl.int64) * x_h + at_column * x_w
            channel = first_in + into
            mask = reached[:, None] & has_in[None, :]
            v = tl.load(x + at[:, None] + channel.to(tl.int64)[None, :] * x_c, mask, 0.0)
            if NORM is not None:
                z = v.to(tl.float32) - tl.load(mean + channel, has_in, 0.0)[None, :]
                z = z * tl.load(scale + channel, has_in, 0.0)[None, :]
                z = activate(z + tl.load(shift + channel, has_in, 0.0)[None, :], NORM)
                v = tl.where(mask, z, 0.0).to(v.dtype)
            if BIAS:
                total += tl.sum(g.to(tl.float32), 0)
            # What lies beyond the image is no factor: 0 times an infinite gradient would be NaN.
            if DOT:
                g = tl.where(reached[:, None], g, 0.0).to(v.dtype)
                if WIDEN:
                    g, v = g.to(tl.float32), v.to(tl.float32)
                acc = tl.dot(tl.trans(g), v, acc, input_precision=PRECISION)
            else:
                g = tl.where(reached[:, None], g.to(tl.float32), 0.0)
                acc += tl.sum(g[:, :, None] * v.to(tl.float32)[:, None, :], 0)
        to = parts + part.to(tl.int64) * part_size
        weights = first_weight + (out[:, None] * c_in + into[None, :]) * k * k + tap
        tl.store(to + weights, acc, has_out[:, None] & has_in[None, :])
        if BIAS:
            begins = (tap == 0) & (in_block == 0)
            if begins:
                tl.store(to + bias_at + first_out + out, total, has_out)


@triton.jit(do_not_specialize=["count"])
def add_parts_kernel(parts, to, first, size, part_size, count, BLOCK: tl.constexpr):
    """to[i] = sum of parts[p, first + i] over the parts, in their order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros([BLOCK], tl.float32)
    source = parts + first + at
    for _ in range(count):
        total += tl.load(source, mask, 0.0)
        source += part_size
    tl.store(to + at, total.to(to.dtype.element_ty), mask)


def add_parts(parts: torch.Tensor, to: torch.Tensor, first: int) -> None:
    """Fills ``to`` with sums of ``parts`` [P, n] over P, from element ``first`` of n on."""
    block = 256
    add_parts_kernel[(triton.cdiv(to.numel(), block),)](
        parts, to, first, to.numel(), parts.shape[1], parts.shape[0], BLOCK=block, num_warps=2
    )


def launch(grad, x, grad_weight, grad_bias, work: ConvWork, stride, dilation, *, norm=None):
    """Fills ``grad_weight`` and, where it is given, ``grad_bias``."""
    dot = uses_dot(work, x.dtype)
    most, least = (64, 16) if dot else (8, 1)
    out_block, in_block = padded(min(work.c_out, most), least), padded(min(work.c_in, most), least)
    out_blocks, in_blocks = triton.cdiv(work.c_out, out_block), triton.cdiv(work.c_in, in_block)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    taps = work.k**2
    each = work.units * taps * out_blocks * in_blocks
    # Several blocks a processor, but shares worth a block.
    wanted = triton.cdiv(8 * processors(x.device), each)
    count = max(1, min(wanted, triton.cdiv(pixels, 512)))
    share = triton.cdiv(pixels, count)
    weights = grad_weight.numel()
    size = weights + (0 if grad_bias is None else grad.shape[1])
    parts = torch.empty((count, size), dtype=torch.float32, device=x.device)
    mean, scale, shift, activation = (x, x, x, None) if norm is None else norm
    with torch.cuda.device_of(x):
        conv_grad_weight_kernel[(each * count,)](
            grad, x, parts, work.table, mean, scale, shift, work.units, taps, size, weights,
            share, pixels, *x.shape[2:], *grad.shape[2:], *grad.stride(), *x.stride(),
            STRIDE=stride, DILATION=dilation, K=work.k if work.uniform else 0,
            OUT_BLOCK=out_block, OUT_BLOCKS=out_blocks, IN_BLOCK=in_block, IN_BLOCKS=in_blocks,
            DOT=dot, NORM=activation, BIAS=grad_bias is not None,
            CHANNELS_LAST=x.stride(1) == 1, PRECISION=precision(x.dtype),
            WIDEN=INTERPRETED and x.dtype != torch.float32,
        )  # fmt: skip
        add_parts(parts, grad_weight, 0)
        if grad_bias is not None:
            add_parts(parts, grad_bias, weights)
