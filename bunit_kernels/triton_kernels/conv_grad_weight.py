"""Gradients of a convolutional level's weight and bias, the same whatever runs first.

A program takes one unit, some of its taps and channels on both sides, and a share of all output
pixels, and writes its sums to a workspace; a second launch adds the shares in their order. The
gradient is read once for all of a program's taps. Wide units go through ``tl.dot``; of narrow ones
a thread keeps all sums of its pixels, which are added up at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .conv_level import (
    VARYING,
    aligned,
    check_size,
    normed,
    padded,
    source_pixel,
    uses_dot,
)
from .tf32 import precision
from .tuning import INTERPRETED, tuned
from .work import ConvWork, processors

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=2)
    for block, warps in ((64, 4), (128, 4), (64, 2), (32, 2), (32, 4))
]
KEY = (
    "STRIDE", "DILATION", "K", "OUT", "IN", "OUT_BLOCK", "IN_BLOCK", "TAPS", "DOT", "NORM", "BIAS",
    "CHANNELS_LAST",
)  # fmt: skip
#: Sums of a narrow unit that a thread keeps for each of its pixels.
NARROW_SUMS = 32
#: Columns (taps times channels) of a wide unit's tile.
WIDE_COLUMNS = 64


def _candidates(configs, given):
    """Larger tiles may take more registers than there are: small ones first of narrow units' sums,
    and of TF32, whose factors are as wide as its sums."""
    if given["PRECISION"] == "tf32":
        return [c for c in configs[::-1] if c.kwargs["BLOCK"] <= 64 and c.num_warps == 4]
    wide = [c for c in configs if (c.kwargs["BLOCK"], c.num_warps) != (32, 4)]
    return wide if given["DOT"] else wide[::-1]


@tuned(CONFIGS, KEY, _candidates)
@triton.jit(do_not_specialize=["share", *VARYING, "g_n", "g_h", "x_n", "x_h"])
def conv_grad_weight_kernel(
    grad, x, parts, table, mean, scale, shift,
    units, part_size, bias_at, share, pixels, in_h, in_w, out_h, out_w,
    g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr,
    K: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,  # of all units, or 0 where they differ
    OUT_BLOCK: tl.constexpr, OUT_BLOCKS: tl.constexpr,
    IN_BLOCK: tl.constexpr, IN_BLOCKS: tl.constexpr,
    TAPS: tl.constexpr, TAP_BLOCKS: tl.constexpr,
    X_ALIGNED: tl.constexpr, G_ALIGNED: tl.constexpr,
    DOT: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``share`` pixels a program; ``NORM`` is the activation after the norm of x, or None."""
    COLUMNS: tl.constexpr = TAPS * IN_BLOCK
    unit = tl.program_id(0) % units
    rest = tl.program_id(0) // units
    tap_block = rest % TAP_BLOCKS
    out_block = rest // TAP_BLOCKS % OUT_BLOCKS
    in_block = rest // TAP_BLOCKS // OUT_BLOCKS % IN_BLOCKS
    part = rest // TAP_BLOCKS // OUT_BLOCKS // IN_BLOCKS
    row = table + unit * 7
    pad = tl.load(row + 5)
    if K > 0:
        k, c_in, c_out = K, IN, OUT
        first_in, first_out, first_weight = unit * IN, unit * OUT, unit * (K * K * IN * OUT)
    else:
        first_in, c_in = tl.load(row), tl.load(row + 1)
        first_out, c_out = tl.load(row + 2), tl.load(row + 3)
        k, first_weight = tl.load(row + 4), tl.load(row + 6)
    if tap_block * TAPS < k * k:
        out = out_block * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
        column = tl.arange(0, COLUMNS)  # of a tap all channels, then of the next
        tap, into = tap_block * TAPS + column // IN_BLOCK, in_block * IN_BLOCK + column % IN_BLOCK
        has_out, has_column = out < c_out, (into < c_in) & (tap < k * k)
        tap_row, tap_column = tap // k, tap % k
        g_channels = tl.multiple_of(first_out.to(tl.int64) * g_c, G_ALIGNED) + out * g_c
        x_channels = tl.multiple_of(first_in.to(tl.int64) * x_c, X_ALIGNED) + into * x_c
        if NORM is not None:
            n = first_in + into
            m = tl.load(mean + n, has_column, 0.0)[:, None]
            s = tl.load(scale + n, has_column, 0.0)[:, None]
            b = tl.load(shift + n, has_column, 0.0)[:, None]
        if DOT:
            acc = tl.zeros([OUT_BLOCK, COLUMNS], tl.float32)
        else:
            acc = tl.zeros([OUT_BLOCK, COLUMNS, BLOCK], tl.float32)
        total = tl.zeros([OUT_BLOCK], tl.float32)
        end = tl.minimum((part + 1) * share, pixels)
        for first in range(part * share, end, BLOCK):
            pixel = first + tl.arange(0, BLOCK)
            inside = pixel < end
            image = (pixel // (out_h * out_w)).to(tl.int64)
            out_row = pixel // out_w % out_h
            out_column = pixel % out_w
            at = image * g_n + out_row.to(tl.int64) * g_h + out_column * g_w
            g = _tile(grad, tl.multiple_of(at, G_ALIGNED), g_channels, inside, has_out,
                      CHANNELS_LAST and DOT)  # fmt: skip
            if CHANNELS_LAST and DOT:
                at_row, at_column, reached = source_pixel(
                    out_row[:, None], out_column[:, None], tap_row[None, :], tap_column[None, :],
                    pad, in_h, in_w, STRIDE, DILATION, False,
                )  # fmt: skip
                at = (image * x_n)[:, None] + at_row.to(tl.int64) * x_h + at_column * x_w
                reached &= inside[:, None] & has_column[None, :]
                at = tl.multiple_of(at, [X_ALIGNED, X_ALIGNED]) + x_channels[None, :]
                v = tl.trans(tl.load(x + at, reached, 0.0))
                reached = tl.trans(reached)
            else:
                at_row, at_column, reached = source_pixel(
                    out_row[None, :], out_column[None, :], tap_row[:, None], tap_column[:, None],
                    pad, in_h, in_w, STRIDE, DILATION, False,
                )  # fmt: skip
                at = (image * x_n)[None, :] + at_row.to(tl.int64) * x_h + at_column * x_w
                reached &= inside[None, :] & has_column[:, None]
                v = tl.load(x + at + x_channels[:, None], reached, 0.0)
            if NORM is not None:
                v = normed(v, reached, m, s, b, v.dtype, NORM)
            if BIAS:
                total += tl.sum(g.to(tl.float32), 1)
            if DOT:
                g = g.to(v.dtype)
                if WIDEN:
                    g, v = g.to(tl.float32), v.to(tl.float32)
                acc = tl.dot(g, tl.trans(v), acc, input_precision=PRECISION)
            else:
                # What lies beyond the image is no factor: 0 times an infinite gradient is NaN.
                product = g.to(tl.float32)[:, None, :] * v.to(tl.float32)[None, :, :]
                acc += tl.where(reached[None, :, :], product, 0.0)
        sums = acc if DOT else tl.sum(acc, 2)
        to = parts + part.to(tl.int64) * part_size
        weights = first_weight + (out[:, None] * c_in + into[None, :]) * k * k + tap[None, :]
        tl.store(to + weights, sums, has_out[:, None] & has_column[None, :])
        if BIAS:
            begins = (tap_block == 0) & (in_block == 0)
            if begins:
                tl.store(to + bias_at + first_out + out, total, has_out)


@triton.jit
def _tile(x, pixels, channels, inside, held, CHANNELS_LAST: tl.constexpr):
    """[channels, pixels], read along the one that lies side by side."""
    if CHANNELS_LAST:
        at = pixels[:, None] + channels[None, :]
        return tl.trans(tl.load(x + at, inside[:, None] & held[None, :], 0.0))
    else:
        at = pixels[None, :] + channels[:, None]
        return tl.load(x + at, inside[None, :] & held[:, None], 0.0)


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


def launch(grad, x, grad_weight, grad_bias, work: ConvWork, stride, dilation, *, tf32, norm=None):
    """Fills ``grad_weight`` and, where it is given, ``grad_bias``; ``tf32`` allows its products for
    float32."""
    check_size(x, work.c_in)
    check_size(grad, work.c_out)
    dot = uses_dot(work, x.dtype, tf32)
    most_out, most_in, least = (32, 64, 16) if dot else (8, 8, 1)
    out_block = padded(min(work.c_out, most_out), least)
    in_block = padded(min(work.c_in, most_in), least)
    out_blocks, in_blocks = triton.cdiv(work.c_out, out_block), triton.cdiv(work.c_in, in_block)
    columns = WIDE_COLUMNS if dot else NARROW_SUMS // out_block
    taps = min(max(1, columns // in_block), padded(work.k**2))
    tap_blocks = triton.cdiv(work.k**2, taps)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    each = work.units * tap_blocks * out_blocks * in_blocks
    # Several blocks a processor, but shares worth a block.
    wanted = triton.cdiv(8 * processors(x.device), each)
    count = max(1, min(wanted, triton.cdiv(pixels, 512)))
    share = triton.cdiv(pixels, count)
    weights = grad_weight.numel()
    size = weights + (0 if grad_bias is None else grad.shape[1])
    parts = torch.empty((count, size), dtype=torch.float32, device=x.device)
    mean, scale, shift, activation = (x, x, x, None) if norm is None else norm
    known_k, known_out, known_in = (work.k, work.c_out, work.c_in) if work.uniform else (0, 0, 0)
    with torch.cuda.device_of(x):
        conv_grad_weight_kernel[(each * count,)](
            grad, x, parts, work.table, mean, scale, shift, work.units, size, weights, share,
            pixels, *x.shape[2:], *grad.shape[2:], *grad.stride(), *x.stride(),
            STRIDE=stride, DILATION=dilation, K=known_k, OUT=known_out, IN=known_in,
            OUT_BLOCK=out_block, OUT_BLOCKS=out_blocks, IN_BLOCK=in_block, IN_BLOCKS=in_blocks,
            TAPS=taps, TAP_BLOCKS=tap_blocks,
            X_ALIGNED=aligned(x, known_in), G_ALIGNED=aligned(grad, known_out),
            DOT=dot, NORM=activation, BIAS=grad_bias is not None,
            CHANNELS_LAST=x.stride(1) == 1, PRECISION=precision(x.dtype, tf32),
            WIDEN=INTERPRETED and x.dtype != torch.float32,
        )  # fmt: skip
        add_parts(parts, grad_weight, 0)
        if grad_bias is not None:
            add_parts(parts, grad_bias, weights)
