"""Batch normalisation and activation of all channels of a level, and their gradients.

An NCHW tensor is taken as a matrix of planes by pixels, a channels_last one as pixels by channels:
tiles of either need no division for each of their values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._tensor_format import is_channels_last
from .activations import activate, activation_grad
from .work import processors

TILE = 1024  # values
VARYING = ["rows", "values", "parts", "share"]  # with the batch: compile nothing anew


class Norm(NamedTuple):
    """``activation((z - mean) * scale + shift)`` of a level's pre-norm output ``z``: float32, [C]
    each; ``scale`` is gamma / sqrt(var + eps), ``shift`` is beta."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    activation: str


@triton.jit(do_not_specialize=VARYING)
def merge_moments_kernel(
    moments, stats, parts, channels, eps, stats_step, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Two passes over the tiles, so that no square is subtracted from another; distances are taken
    from the first tile's mean, which is not far from that of all."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    held = channel < channels
    part = tl.arange(0, PARTS)
    size = parts * channels
    origin = tl.load(moments + size + channel, held, 0.0)
    counts = tl.zeros([PARTS, CHANNELS], tl.float32)
    sums = tl.zeros([PARTS, CHANNELS], tl.float32)
    for first in range(0, parts, PARTS):
        mask = (first + part < parts)[:, None] & held[None, :]
        at = moments + (first + part)[:, None] * channels + channel[None, :]
        n = tl.load(at, mask, 0.0)
        m = tl.load(at + size, mask, 0.0)
        counts += n
        sums += tl.where(mask, n * (m - origin[None, :]), 0.0)
    count = tl.sum(counts, 0)
    offset = tl.sum(sums, 0) / count
    squares = tl.zeros([PARTS, CHANNELS], tl.float32)
    for first in range(0, parts, PARTS):
        mask = (first + part < parts)[:, None] & held[None, :]
        at = moments + (first + part)[:, None] * channels + channel[None, :]
        n = tl.load(at, mask, 0.0)
        delta = tl.load(at + size, mask, 0.0) - origin[None, :] - offset[None, :]
        squares += tl.where(mask, tl.load(at + 2 * size, mask, 0.0) + n * delta * delta, 0.0)
    square = tl.sum(squares, 0)
    tl.store(stats + channel, origin + offset, held)
    tl.store(stats + stats_step + channel, 1 / tl.sqrt(square / count + eps), held)
    tl.store(stats + 2 * stats_step + channel, square / (count - 1), held)


def merge_moments(moments: Tensor, stats: Tensor, eps: float) -> None:
    """Fills ``stats`` [3, C] (a view with dense rows): mean, 1 / sqrt(var + eps), unbiased var."""
    _, parts, channels = moments.shape
    with torch.cuda.device_of(moments):
        merge_moments_kernel[(triton.cdiv(channels, 8),)](
            moments, stats, parts, channels, eps, stats.stride(0), PARTS=128, CHANNELS=8,
            num_warps=4,
        )  # fmt: skip


@triton.jit
def _tile(rows, columns, channels, CHANNELS_LAST: tl.constexpr, ROWS: tl.constexpr,
          COLUMNS: tl.constexpr):  # fmt: skip
    """A program's part of the matrix: where it is, which of it there is, and whose channel."""
    across = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    at = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    if CHANNELS_LAST:
        return at, mask, column[None, :], (column < columns)[None, :]
    else:
        return at, mask, (row % channels)[:, None], (row < rows)[:, None]


@triton.jit(do_not_specialize=VARYING)
def apply_norm_kernel(
    z, y, residual, mean, scale, shift, rows, columns, channels,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``RESIDUAL`` is the activation after the residual, or None; all tensors dense alike."""
    at, mask, channel, held = _tile(rows, columns, channels, CHANNELS_LAST, ROWS, COLUMNS)
    v = tl.load(z + at, mask, 0.0).to(tl.float32) - tl.load(mean + channel, held, 0.0)
    v = v * tl.load(scale + channel, held, 0.0) + tl.load(shift + channel, held, 0.0)
    v = activate(v, ACTIVATION)
    if RESIDUAL is not None:
        v = activate(v + tl.load(residual + at, mask, 0.0).to(tl.float32), RESIDUAL)
    tl.store(y + at, v.to(y.dtype.element_ty), mask)


def apply_norm(z: Tensor, norm: Norm, residual: Tensor | None, residual_activation: str) -> Tensor:
    """Norm, activation, residual and its activation in one pass; like ``z``, which is dense."""
    y = torch.empty_like(z)
    if residual is not None and residual.stride() != z.stride():
        residual = torch.empty_like(z).copy_(residual)
    rows, columns, tile, grid = _matrix(z)
    with torch.cuda.device_of(z):
        apply_norm_kernel[grid](
            z, y, z if residual is None else residual, norm.mean, norm.scale, norm.shift,
            rows, columns, z.shape[1], ACTIVATION=norm.activation,
            RESIDUAL=None if residual is None else residual_activation, num_warps=4, **tile,
        )  # fmt: skip
    return y


def _matrix(z: Tensor):
    """Rows and columns of ``z`` as a matrix, its tiles, and the grid of programs."""
    images, channels, pixels = z.shape[0], z.shape[1], z.shape[2] * z.shape[3]
    last = is_channels_last(z)
    rows, columns = (images * pixels, channels) if last else (images * channels, pixels)
    across = min(256, triton.next_power_of_2(columns))
    down = TILE // across
    grid = (triton.cdiv(rows, down) * triton.cdiv(columns, across),)
    return rows, columns, {"CHANNELS_LAST": last, "ROWS": down, "COLUMNS": across}, grid


@triton.jit(do_not_specialize=VARYING)
def norm_sums_kernel(
    grad, z, mean, scale, shift, inv_std, parts, rows, columns, channels, share,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of g * zhat and of g, where g = grad * activation'(normed), over ``share`` rows: pixels
    of a block of channels, or one channel's planes of as many images."""
    group, part = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    if CHANNELS_LAST:
        channel = group * COLUMNS + column[None, :]
        held = channel < channels
        across, first_channel, step = 1, group * COLUMNS, channels
    else:
        channel = group + tl.zeros([1, 1], tl.int32)
        held = channel < channels
        across, first_channel, step = tl.cdiv(columns, COLUMNS), 0, channels * columns
    average = tl.load(mean + channel, held, 0.0)
    slope = tl.load(scale + channel, held, 0.0)
    offset = tl.load(shift + channel, held, 0.0)
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    end = tl.minimum((part + 1) * share, rows)
    for tile in range(0, tl.cdiv(end - part * share, ROWS) * across):
        at_row = part * share + tile // across * ROWS + row
        at_column = first_channel + tile % across * COLUMNS + column
        mask = (at_row < end)[:, None] & (at_column < columns)[None, :]
        at = at_row.to(tl.int64)[:, None] * step + at_column[None, :]
        if not CHANNELS_LAST:
            at += group.to(tl.int64) * columns
        d = tl.load(z + at, mask, 0.0).to(tl.float32) - average
        g = activation_grad(
            tl.load(grad + at, mask, 0.0).to(tl.float32), d * slope + offset, ACTIVATION
        )
        g = tl.where(mask, g, 0.0)
        first += tl.where(mask, g * d, 0.0)
        second += g
    to = parts + part * 2 * channels
    if CHANNELS_LAST:
        own = group * COLUMNS + column
        inside = own < channels
        tl.store(to + own, tl.sum(first, 0) * tl.load(inv_std + own, inside, 0.0), inside)
        tl.store(to + channels + own, tl.sum(second, 0), inside)
    else:
        tl.store(to + group, tl.sum(tl.sum(first, 1), 0) * tl.load(inv_std + group))
        tl.store(to + channels + group, tl.sum(tl.sum(second, 1), 0))


@triton.jit(do_not_specialize=VARYING)
def norm_grad_kernel(
    grad, z, dz, mean, scale, shift, inv_std, sums, sums_step, rows, columns, channels, values,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """dz = scale * (g - mean(g) - zhat * mean(g * zhat)), means over a channel's ``values``."""
    at, mask, channel, held = _tile(rows, columns, channels, CHANNELS_LAST, ROWS, COLUMNS)
    slope = tl.load(scale + channel, held, 0.0)
    d = tl.load(z + at, mask, 0.0).to(tl.float32) - tl.load(mean + channel, held, 0.0)
    normed = d * slope + tl.load(shift + channel, held, 0.0)
    g = activation_grad(tl.load(grad + at, mask, 0.0).to(tl.float32), normed, ACTIVATION)
    zhat = d * tl.load(inv_std + channel, held, 0.0)
    mean_gz = tl.load(sums + channel, held, 0.0) / values
    mean_g = tl.load(sums + sums_step + channel, held, 0.0) / values
    v = slope * (g - mean_g - zhat * mean_gz)
    tl.store(dz + at, v.to(dz.dtype.element_ty), mask)


@triton.jit(do_not_specialize=VARYING)
def add_sums_kernel(
    shares, sums, parts, channels, sums_step, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):
    """sums[row, c] = sum of shares[p, row, c], in an order that is always the same."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    row, part = tl.program_id(1), tl.arange(0, PARTS)
    held = channel < channels
    total = tl.zeros([PARTS, CHANNELS], tl.float32)
    for first in range(0, parts, PARTS):
        at = shares + ((first + part)[:, None] * 2 + row) * channels + channel[None, :]
        total += tl.load(at, (first + part < parts)[:, None] & held[None, :], 0.0)
    tl.store(sums + row * sums_step + channel, tl.sum(total, 0), held)


def norm_grad(grad: Tensor, z: Tensor, norm: Norm, inv_std: Tensor, sums: Tensor) -> Tensor:
    """Gradient of ``z`` from that after its norm and activation. Fills ``sums`` [2, C] (a view with
    dense rows): of g * zhat and of g, the gradients of gamma and beta."""
    if grad.stride() != z.stride():
        grad = torch.empty_like(z).copy_(grad)
    channels, values = z.shape[1], z.numel() // z.shape[1]
    rows, columns, tile, grid = _matrix(z)
    groups, length = channels, z.shape[0]
    if tile["CHANNELS_LAST"]:
        across = min(64, tile["COLUMNS"])
        tile_of_sums = tile | {"ROWS": TILE // across, "COLUMNS": across}
        groups, length = triton.cdiv(channels, across), rows
    else:
        tile_of_sums = tile
    wanted = triton.cdiv(8 * processors(z.device), groups)
    count = max(1, min(wanted, triton.cdiv(length, tile_of_sums["ROWS"])))
    share = triton.cdiv(length, count)
    count = triton.cdiv(length, share)
    shares = torch.empty((count, 2, channels), dtype=torch.float32, device=z.device)
    dz = torch.empty_like(z)
    with torch.cuda.device_of(z):
        norm_sums_kernel[(groups, count)](
            grad, z, norm.mean, norm.scale, norm.shift, inv_std, shares, length, columns, channels,
            share, ACTIVATION=norm.activation, num_warps=4, **tile_of_sums,
        )  # fmt: skip
        add_sums_kernel[(triton.cdiv(channels, 8), 2)](
            shares, sums, count, channels, sums.stride(0), PARTS=64, CHANNELS=8, num_warps=2
        )
        norm_grad_kernel[grid](
            grad, z, dz, norm.mean, norm.scale, norm.shift, inv_std, sums, sums.stride(0),
            rows, columns, channels, values, ACTIVATION=norm.activation, num_warps=4, **tile,
        )  # fmt: skip
    return dz
