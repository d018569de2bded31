"""One convolutional level of all units in one launch, and the gradient of its input.

A program takes one unit, a tile of output pixels and a block of output channels, and keeps their
sums as [channels, pixels]: lanes next to each other hold pixels next to each other, which an NCHW
image holds side by side too. Wide units go through ``tl.dot``, a tap at a time; of narrow ones a
thread keeps all channels of its pixels, and each value read serves them all. The gradient of the
input is the same sum with channels and taps turned around, of those gradients that a pixel has
reached.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .activations import activate
from .tf32 import precision
from .tuning import INTERPRETED, tuned
from .work import ConvWork

CONFIGS = [
    triton.Config({"BLOCK": block}, num_warps=warps, num_stages=2)
    for block, warps in ((128, 4), (256, 4), (512, 4), (64, 4), (64, 2))
]
KEY = (
    "STRIDE", "DILATION", "K", "FROM", "TO", "FROM_BLOCK", "TO_BLOCK", "DOT", "TRANSPOSED", "NORM",
    "ACTIVATION", "MOMENTS", "RESIDUAL", "CHANNELS_LAST",
)  # fmt: skip


#: Arguments that change with the batch and the image: another value compiles nothing.
VARYING = ("pixels", "in_h", "in_w", "out_h", "out_w")


def moments_block(dot: bool) -> int:
    """Pixels of a tile where moments are taken: one size, so that the number of tiles is known."""
    return 64 if dot else 128


def _candidates(configs, given):
    if given["DOT"]:  # sums are to stay in registers: smaller tiles first, wide loads by few warps
        configs = [c for c in configs[::-1] if c.kwargs["BLOCK"] <= 128]
        if not given["CHANNELS_LAST"] or given["PRECISION"] == "tf32":
            configs.sort(key=lambda config: (config.kwargs["BLOCK"], -config.num_warps))
    if given["MOMENTS"]:
        return [c for c in configs if c.kwargs["BLOCK"] == moments_block(given["DOT"])]
    return configs


@triton.jit
def source_pixel(
    out_row, out_column, tap_row, tap_column, pad, in_h, in_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Row and column that an output pixel reads at a tap, and whether the image has them."""
    if TRANSPOSED:
        row = out_row + pad - tap_row * DILATION
        column = out_column + pad - tap_column * DILATION
        reached = (row >= 0) & (column >= 0) & (row % STRIDE == 0) & (column % STRIDE == 0)
        row, column = row // STRIDE, column // STRIDE
    else:
        row = out_row * STRIDE + tap_row * DILATION - pad
        column = out_column * STRIDE + tap_column * DILATION - pad
        reached = (row >= 0) & (column >= 0)
    return row, column, reached & (row < in_h) & (column < in_w)


@triton.jit
def normed(v, reached, mean, scale, shift, dtype: tl.constexpr, NORM: tl.constexpr):
    """Values normalised and activated in float32, 0 beyond the image."""
    v = activate((v.to(tl.float32) - mean) * scale + shift, NORM)
    return tl.where(reached, v, 0.0).to(dtype)


@triton.jit
def _add_tap(
    acc, tap_row, tap_column, k, pad, c_from, w_from, wanted, inside, out_row, out_column, source,
    weights, first_from, mean, scale, shift, in_h, in_w, x_c, x_h, x_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr, FROM: tl.constexpr, FROM_BLOCK: tl.constexpr,
    FROM_BLOCKS: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr,
    TRANSPOSED: tl.constexpr, NORM: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``acc`` and the products of one tap, of all channels of the unit."""
    row, column, reached = source_pixel(
        out_row, out_column, tap_row, tap_column, pad, in_h, in_w, STRIDE, DILATION, TRANSPOSED
    )
    reached &= inside
    values = source + tl.multiple_of(row.to(tl.int64) * x_h + column * x_w, ALIGNED)
    weights += tap_row * k + tap_column
    if DOT:
        for block in tl.static_range(FROM_BLOCKS):
            channel = block * FROM_BLOCK + tl.arange(0, FROM_BLOCK)
            held = channel < c_from
            mask = reached[None, :] & held[:, None]
            if CHANNELS_LAST:
                at = values[:, None] + channel[None, :] * x_c
                v = tl.trans(tl.load(at, reached[:, None] & held[None, :], 0.0))
            else:
                v = tl.load(values[None, :] + channel[:, None] * x_c, mask, 0.0)
            if NORM is not None:
                n = first_from + channel
                m, s = tl.load(mean + n, held, 0.0), tl.load(scale + n, held, 0.0)
                b = tl.load(shift + n, held, 0.0)
                v = normed(v, mask, m[:, None], s[:, None], b[:, None], v.dtype, NORM)
            w = tl.load(
                weights[:, None] + channel[None, :] * w_from, wanted[:, None] & held[None, :], 0.0
            )
            if WIDEN:
                v, w = v.to(tl.float32), w.to(tl.float32)
            acc = tl.dot(w, v, acc, input_precision=PRECISION)
    elif UNROLL:
        for channel in tl.static_range(FROM):
            acc = _add_channel(
                acc, values + channel * x_c, weights + channel * w_from, reached, wanted,
                first_from + channel, mean, scale, shift, NORM,
            )  # fmt: skip
    else:
        for channel in range(c_from):
            acc = _add_channel(
                acc, values + channel * x_c, weights + channel * w_from, reached, wanted,
                first_from + channel, mean, scale, shift, NORM,
            )  # fmt: skip
    return acc


@triton.jit
def _add_channel(
    acc, values, weights, reached, wanted, channel, mean, scale, shift, NORM: tl.constexpr
):
    v = tl.load(values, reached, 0.0).to(tl.float32)
    if NORM is not None:
        m, s, b = tl.load(mean + channel), tl.load(scale + channel), tl.load(shift + channel)
        v = normed(v, reached, m, s, b, tl.float32, NORM)
    w = tl.load(weights, wanted, 0.0).to(tl.float32)
    return acc + w[:, None] * v[None, :]


@tuned(CONFIGS, KEY, _candidates)
@triton.jit(do_not_specialize=["parts", *VARYING, "x_n", "x_h", "y_n", "y_h"])
def conv_level_kernel(
    x, weight, bias, y, table, mean, scale, shift, moments, residual,
    units, to_channels, parts, pixels, in_h, in_w, out_h, out_w,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    STRIDE: tl.constexpr, DILATION: tl.constexpr,
    K: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,  # of all units, or 0 where they differ
    FROM_BLOCK: tl.constexpr, FROM_BLOCKS: tl.constexpr,
    TO_BLOCK: tl.constexpr, TO_BLOCKS: tl.constexpr,
    X_ALIGNED: tl.constexpr, Y_ALIGNED: tl.constexpr,
    DOT: tl.constexpr, TRANSPOSED: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
    ACTIVATION: tl.constexpr, MOMENTS: tl.constexpr, RESIDUAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``RESIDUAL`` is the activation after the residual, ``NORM`` that after the norm of the input;
    None where there is none. All of a pixel's offsets in ``x`` are multiples of ``X_ALIGNED``."""
    UNROLL: tl.constexpr = K > 0 and K * K * FROM <= 80
    unit = tl.program_id(0) % units
    block = tl.program_id(0) // units % TO_BLOCKS
    tile = tl.program_id(0) // units // TO_BLOCKS
    row = table + unit * 7
    pad = tl.load(row + 5)
    if K > 0:  # of what the compiler knows it can make wide loads and no masks
        k, c_from, c_to = K, FROM, TO
        first_from, first_to, first_weight = unit * FROM, unit * TO, unit * (K * K * FROM * TO)
    else:
        if TRANSPOSED:
            first_to, c_to = tl.load(row), tl.load(row + 1)
            first_from, c_from = tl.load(row + 2), tl.load(row + 3)
        else:
            first_from, c_from = tl.load(row), tl.load(row + 1)
            first_to, c_to = tl.load(row + 2), tl.load(row + 3)
        k, first_weight = tl.load(row + 4), tl.load(row + 6)
    # Elements of the weight from one channel to the next.
    if TRANSPOSED:
        w_from, w_to = c_to * k * k, k * k
    else:
        w_from, w_to = k * k, c_from * k * k

    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    image = (pixel // (out_h * out_w)).to(tl.int64)
    out_row = pixel // out_w % out_h
    out_column = pixel % out_w
    to = block * TO_BLOCK + tl.arange(0, TO_BLOCK)
    wanted = to < c_to
    source = x + tl.multiple_of(image * x_n, X_ALIGNED) + first_from.to(tl.int64) * x_c
    weights = weight + first_weight + to * w_to
    acc = tl.zeros([TO_BLOCK, BLOCK], tl.float32)
    if UNROLL:
        for tap in tl.static_range(K * K):
            acc = _add_tap(
                acc, tap // K, tap % K, K, pad, c_from, w_from, wanted, inside, out_row, out_column,
                source, weights, first_from, mean, scale, shift, in_h, in_w, x_c, x_h, x_w, STRIDE,
                DILATION, FROM, FROM_BLOCK, FROM_BLOCKS, X_ALIGNED, DOT, TRANSPOSED, NORM,
                CHANNELS_LAST, PRECISION, WIDEN, UNROLL,
            )  # fmt: skip
    else:
        for tap in range(k * k):
            acc = _add_tap(
                acc, tap // k, tap % k, k, pad, c_from, w_from, wanted, inside, out_row, out_column,
                source, weights, first_from, mean, scale, shift, in_h, in_w, x_c, x_h, x_w, STRIDE,
                DILATION, FROM, FROM_BLOCK, FROM_BLOCKS, X_ALIGNED, DOT, TRANSPOSED, NORM,
                CHANNELS_LAST, PRECISION, WIDEN, UNROLL,
            )  # fmt: skip

    channel = first_to + to
    if BIAS:
        acc += tl.load(bias + channel, wanted, 0.0).to(tl.float32)[:, None]
    if MOMENTS:
        count = tl.sum(inside.to(tl.float32), 0)
        average = tl.sum(tl.where(inside[None, :], acc, 0.0), 1) / count
        distance = tl.where(inside[None, :], acc - average[:, None], 0.0)
        part = moments + tile * to_channels + channel
        tl.store(part, tl.zeros([TO_BLOCK], tl.float32) + count, wanted)
        tl.store(part + parts * to_channels, average, wanted)
        tl.store(part + 2 * parts * to_channels, tl.sum(distance * distance, 1), wanted)
    acc = activate(acc, ACTIVATION)
    target = image * y_n + out_row.to(tl.int64) * y_h + out_column * y_w
    target = tl.multiple_of(target, Y_ALIGNED)
    if CHANNELS_LAST:
        acc = tl.trans(acc)
        offsets = target[:, None] + channel.to(tl.int64)[None, :] * y_c
        mask = inside[:, None] & wanted[None, :]
    else:
        offsets = target[None, :] + channel.to(tl.int64)[:, None] * y_c
        mask = inside[None, :] & wanted[:, None]
    if RESIDUAL is not None:
        acc = activate(acc + tl.load(residual + offsets, mask, 0.0).to(tl.float32), RESIDUAL)
    tl.store(y + offsets, acc.to(y.dtype.element_ty), mask)


def padded(width: int, least: int = 1) -> int:
    """The next power of two, as blocks of channels must have."""
    return max(least, triton.next_power_of_2(width))


def uses_dot(work: ConvWork, dtype: torch.dtype, tf32: bool) -> bool:
    """Whether matrix units take the dtype, and units fill their tiles well enough. Exact products
    of float32 are plain multiply-adds in ``tl.dot`` too, and there take more registers."""
    return min(work.c_in, work.c_out) >= 16 and (tf32 or dtype != torch.float32)


def aligned(x: torch.Tensor, width: int) -> int:
    """What divides each pixel's offset and each unit's first channel, where channels lie side by
    side: up to as many values as one load takes."""
    n, c, h, w = x.stride()
    return math.gcd(n, h, w, width, 16 // x.element_size()) if c == 1 and width > 0 else 1


def check_size(image: torch.Tensor, width: int) -> None:
    """Raises ValueError where 32 bits do not count the pixels of all images or the elements from a
    unit's first channel to its last; what is longer is counted in 64."""
    n, _, h, w = image.shape
    if n * h * w >= 1 << 31 or (width - 1) * image.stride(1) >= 1 << 31:
        raise ValueError(
            f"backend 'triton' takes up to 2^31 pixels, and units whose channels lie within 2^31 "
            f"elements, got a tensor of shape {tuple(image.shape)} and a unit of {width} channels"
        )


def launch(
    x, weight, bias, y, work: ConvWork, stride, dilation, activation, *, tf32, transposed=False,
    norm=None, moments=None, residual=None, residual_activation=None,
):  # fmt: skip
    """Fills ``y`` from ``x``; ``residual`` has the strides of ``y``; ``tf32`` allows its products
    for float32."""
    c_from, c_to = (work.c_out, work.c_in) if transposed else (work.c_in, work.c_out)
    check_size(x, c_from)
    check_size(y, c_to)
    dot = uses_dot(work, x.dtype, tf32)
    from_block = padded(min(c_from, 64), 16)
    to_block = padded(min(c_to, 64), 16) if dot else padded(min(c_to, 16))
    to_blocks = triton.cdiv(c_to, to_block)
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    parts = 0 if moments is None else moments.shape[1]
    mean, scale, shift, norm_activation = (x, x, x, None) if norm is None else norm
    known_from, known_to, known_k = (c_from, c_to, work.k) if work.uniform else (0, 0, 0)

    def grid(meta):
        return (work.units * to_blocks * triton.cdiv(pixels, meta["BLOCK"]),)

    with torch.cuda.device_of(x):
        conv_level_kernel[grid](
            x, weight, weight if bias is None else bias, y, work.table, mean, scale, shift,
            x if moments is None else moments, y if residual is None else residual,
            work.units, y.shape[1], parts, pixels, *x.shape[2:], *y.shape[2:],
            *x.stride(), *y.stride(),
            STRIDE=stride, DILATION=dilation, K=known_k, FROM=known_from, TO=known_to,
            FROM_BLOCK=from_block, FROM_BLOCKS=triton.cdiv(c_from, from_block),
            TO_BLOCK=to_block, TO_BLOCKS=to_blocks,
            X_ALIGNED=aligned(x, known_from), Y_ALIGNED=aligned(y, known_to),
            DOT=dot, TRANSPOSED=transposed,
            BIAS=bias is not None, NORM=norm_activation, ACTIVATION=activation,
            MOMENTS=moments is not None, RESIDUAL=None if residual is None else residual_activation,
            CHANNELS_LAST=x.stride(1) == 1, PRECISION=precision(x.dtype, tf32),
            WIDEN=INTERPRETED and x.dtype != torch.float32,
        )  # fmt: skip
