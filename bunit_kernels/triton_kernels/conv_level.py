"""One convolutional level of all units in one launch, and the gradient of its input.

A program takes one unit, a tile of output pixels and a block of output channels. Wide units go
through ``tl.dot``, a tap at a time; of narrow ones a thread keeps all channels of its pixels, and
each value read serves them all. The gradient of the input is the same sum with channels and taps
turned around, of those gradients that a pixel has reached.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .activations import activate
from .tuning import INTERPRETED, tuned
from .work import ConvWork

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=2)
    for block, warps in ((128, 4), (256, 4), (512, 4), (64, 2), (64, 4))
]
KEY = (
    "STRIDE", "DILATION", "K", "FROM", "FROM_PAD", "TO_BLOCK", "DOT", "TRANSPOSED", "NORM",
    "ACTIVATION", "MOMENTS", "RESIDUAL", "CHANNELS_LAST",
)  # fmt: skip


#: Arguments that change with the batch and the image: another value compiles nothing.
VARYING = ("pixels", "in_h", "in_w", "out_h", "out_w")


def moments_block(dot: bool) -> int:
    """Pixels of a tile where moments are taken: one size, so that the number of tiles is known."""
    return 64 if dot else 128


def _candidates(configs, given):
    if given["DOT"]:  # sums are to stay in registers: smaller tiles first
        configs = [c for c in configs[::-1] if c.kwargs["BLOCK"] <= 128]
    if given["MOMENTS"]:
        return [c for c in configs if c.kwargs["BLOCK"] == moments_block(given["DOT"])]
    return configs


@triton.jit
def _add_tap(
    acc, tap, k, pad, c_from, w_from, wanted, inside, out_row, out_column, source, weights,
    first_from, mean, scale, shift, in_h, in_w, x_c, x_h, x_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, FROM: tl.constexpr, FROM_PAD: tl.constexpr,
    DOT: tl.constexpr, TRANSPOSED: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``acc`` and the products of one tap, of all channels of the unit."""
    if TRANSPOSED:
        at_row = out_row + pad - tap // k * DILATION
        at_column = out_column + pad - tap % k * DILATION
        reached = inside & (at_row % STRIDE == 0) & (at_column % STRIDE == 0)
        reached &= (at_row >= 0) & (at_column >= 0)
        at_row, at_column = at_row // STRIDE, at_column // STRIDE
    else:
        at_row = out_row * STRIDE + tap // k * DILATION - pad
        at_column = out_column * STRIDE + tap % k * DILATION - pad
        reached = inside & (at_row >= 0) & (at_column >= 0)
    reached &= (at_row < in_h) & (at_column < in_w)
    values = source + at_row.to(tl.int64) * x_h + at_column * x_w
    if DOT:
        for first in range(0, c_from, FROM_PAD):
            channel = first + tl.arange(0, FROM_PAD)
            held = channel < c_from
            mask = reached[:, None] & held[None, :]
            v = tl.load(values[:, None] + channel[None, :] * x_c, mask, 0.0)
            if NORM is not None:
                n = first_from + channel
                z = v.to(tl.float32) - tl.load(mean + n, held, 0.0)[None, :]
                z = z * tl.load(scale + n, held, 0.0)[None, :]
                z = activate(z + tl.load(shift + n, held, 0.0)[None, :], NORM)
                v = tl.where(mask, z, 0.0).to(v.dtype)
            w = tl.load(
                weights[None, :] + channel[:, None] * w_from + tap,
                held[:, None] & wanted[None, :], 0.0,
            )  # fmt: skip
            if WIDEN:
                v, w = v.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(v, w, acc, input_precision=PRECISION)
    elif UNROLL:
        for channel in tl.static_range(FROM):
            v = _value(
                values + channel * x_c, reached, first_from + channel, mean, scale, shift, NORM
            )
            w = tl.load(weights + channel * w_from + tap, wanted, 0.0).to(tl.float32)
            acc += v[:, None] * w[None, :]
    else:
        for channel in range(c_from):
            v = _value(
                values + channel * x_c, reached, first_from + channel, mean, scale, shift, NORM
            )
            w = tl.load(weights + channel * w_from + tap, wanted, 0.0).to(tl.float32)
            acc += v[:, None] * w[None, :]
    return acc


@triton.jit
def _value(pointers, reached, channel, mean, scale, shift, NORM: tl.constexpr):
    """One channel's pixels, normalised and activated where there is a norm, 0 beyond the image."""
    v = tl.load(pointers, reached, 0.0).to(tl.float32)
    if NORM is not None:
        v = (v - tl.load(mean + channel)) * tl.load(scale + channel) + tl.load(shift + channel)
        v = tl.where(reached, activate(v, NORM), 0.0)
    return v


@tuned(CONFIGS, KEY, _candidates)
@triton.jit(do_not_specialize=["parts", *VARYING, "x_n", "x_h", "y_n", "y_h"])
def conv_level_kernel(
    x, weight, bias, y, table, mean, scale, shift, moments, residual,
    units, to_channels, parts, pixels, in_h, in_w, out_h, out_w,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr,
    K: tl.constexpr, FROM: tl.constexpr,  # of all units, or 0 where they differ
    FROM_PAD: tl.constexpr, TO_BLOCK: tl.constexpr, TO_BLOCKS: tl.constexpr,
    DOT: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
    ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``RESIDUAL`` is the activation after the residual, ``NORM`` that after the norm of the input;
    None where there is none."""
    UNROLL: tl.constexpr = K > 0 and K * K * FROM <= 80
    unit = tl.program_id(0) % units
    block = tl.program_id(0) // units % TO_BLOCKS
    tile = tl.program_id(0) // units // TO_BLOCKS
    row = table + unit * 7
    if TRANSPOSED:
        first_to, c_to = tl.load(row), tl.load(row + 1)
        first_from, c_from = tl.load(row + 2), tl.load(row + 3)
    else:
        first_from, c_from = tl.load(row), tl.load(row + 1)
        first_to, c_to = tl.load(row + 2), tl.load(row + 3)
    k, pad, first_weight = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)
    # Elements of the weight from one channel to the next.
    if TRANSPOSED:
        w_from, w_to = c_to * k * k, k * k
    else:
        w_from, w_to = k * k, c_from * k * k

    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    image = pixel // (out_h * out_w)
    out_row = pixel // out_w % out_h
    out_column = pixel % out_w
    to = block * TO_BLOCK + tl.arange(0, TO_BLOCK)
    wanted = to < c_to
    source = x + image.to(tl.int64) * x_n + first_from.to(tl.int64) * x_c
    weights = weight + first_weight + to * w_to
    acc = tl.zeros([BLOCK, TO_BLOCK], tl.float32)
    if UNROLL:
        for tap in tl.static_range(K * K):
            acc = _add_tap(
                acc, tap, K, pad, c_from, w_from, wanted, inside, out_row, out_column, source,
                weights, first_from, mean, scale, shift, in_h, in_w, x_c, x_h, x_w, STRIDE,
                DILATION, FROM, FROM_PAD, DOT, TRANSPOSED, NORM, PRECISION, WIDEN, UNROLL,
            )  # fmt: skip
    else:
        for tap in range(k * k):
            acc = _add_tap(
                acc, tap, k, pad, c_from, w_from, wanted, inside, out_row, out_column, source,
                weights, first_from, mean, scale, shift, in_h, in_w, x_c, x_h, x_w, STRIDE,
                DILATION, FROM, FROM_PAD, DOT, TRANSPOSED, NORM, PRECISION, WIDEN, UNROLL,
            )  # fmt: skip

    channel = first_to + to
    if BIAS:
        acc += tl.load(bias + channel, wanted, 0.0).to(tl.float32)[None, :]
    if MOMENTS:
        count = tl.sum(inside.to(tl.float32), 0)
        average = tl.sum(tl.where(inside[:, None], acc, 0.0), 0) / count
        distance = tl.where(inside[:, None], acc - average[None, :], 0.0)
        part = moments + tile * to_channels + channel
        tl.store(part, tl.zeros([TO_BLOCK], tl.float32) + count, wanted)
        tl.store(part + parts * to_channels, average, wanted)
        tl.store(part + 2 * parts * to_channels, tl.sum(distance * distance, 0), wanted)
    acc = activate(acc, ACTIVATION)
    target = image.to(tl.int64) * y_n + out_row.to(tl.int64) * y_h + out_column * y_w
    offsets = target[:, None] + channel.to(tl.int64)[None, :] * y_c
    mask = inside[:, None] & wanted[None, :]
    if RESIDUAL is not None:
        acc = activate(acc + tl.load(residual + offsets, mask, 0.0).to(tl.float32), RESIDUAL)
    tl.store(y + offsets, acc.to(y.dtype.element_ty), mask)


def padded(width: int, least: int = 1) -> int:
    """The next power of two, as blocks of channels must have."""
    return max(least, triton.next_power_of_2(width))


def uses_dot(work: ConvWork, dtype: torch.dtype) -> bool:
    """Whether matrix units take the dtype, and units fill their tiles well enough. Exact products
    of float32 are plain multiply-adds in ``tl.dot`` too, and there take more registers."""
    exact = dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return min(work.c_in, work.c_out) >= 16 and not exact


def precision(dtype: torch.dtype) -> str:
    """Of products of float32: exact unless PyTorch is told otherwise."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if allowed else "ieee"


def launch(
    x, weight, bias, y, work: ConvWork, stride, dilation, activation, *, transposed=False,
    norm=None, moments=None, residual=None, residual_activation=None,
):  # fmt: skip
    """Fills ``y`` from ``x``; ``residual`` has the strides of ``y``."""
    c_from, c_to = (work.c_out, work.c_in) if transposed else (work.c_in, work.c_out)
    dot = uses_dot(work, x.dtype)
    to_block = padded(min(c_to, 64), 16) if dot else padded(min(c_to, 16))
    to_blocks = triton.cdiv(c_to, to_block)
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    parts = 0 if moments is None else moments.shape[1]
    mean, scale, shift, norm_activation = (x, x, x, None) if norm is None else norm

    def grid(meta):
        return (work.units * to_blocks * triton.cdiv(pixels, meta["BLOCK"]),)

    with torch.cuda.device_of(x):
        conv_level_kernel[grid](
            x, weight, weight if bias is None else bias, y, work.table, mean, scale, shift,
            x if moments is None else moments, y if residual is None else residual,
            work.units, y.shape[1], parts, pixels, *x.shape[2:], *y.shape[2:],
            *x.stride(), *y.stride(),
            STRIDE=stride, DILATION=dilation, K=work.k if work.uniform else 0,
            FROM=c_from if work.uniform else 0, FROM_PAD=padded(min(c_from, 64), 16),
            TO_BLOCK=to_block, TO_BLOCKS=to_blocks, DOT=dot, TRANSPOSED=transposed,
            BIAS=bias is not None, NORM=norm_activation, ACTIVATION=activation,
            MOMENTS=moments is not None, RESIDUAL=None if residual is None else residual_activation,
            CHANNELS_LAST=x.stride(1) == 1, PRECISION=precision(x.dtype),
            WIDEN=INTERPRETED and x.dtype != torch.float32,
        )  # fmt: skip
