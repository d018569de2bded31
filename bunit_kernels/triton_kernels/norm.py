"""Batch normalisation and activation of all channels of a level, and their gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate, activation_grad
from .work import processors


class Norm(NamedTuple):
    """``activation((z - mean) * scale + shift)`` of a level's pre-norm output ``z``: float32, [C]
    each; ``scale`` is gamma / sqrt(var + eps), ``shift`` is beta."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    activation: str


@triton.jit(do_not_specialize=["parts"])
def merge_moments_kernel(moments, stats, parts, channels, eps, stats_step, BLOCK: tl.constexpr):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    size = parts * channels
    count = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    source = moments + channel
    for _ in range(parts):
        n = tl.load(source, mask, 1.0)
        m = tl.load(source + size, mask, 0.0)
        s = tl.load(source + 2 * size, mask, 0.0)
        delta = m - mean
        both = count + n
        mean += delta * (n / both)
        squares += s + delta * delta * (count * (n / both))
        count = both
        source += channels
    tl.store(stats + channel, mean, mask)
    tl.store(stats + stats_step + channel, 1 / tl.sqrt(squares / count + eps), mask)
    tl.store(stats + 2 * stats_step + channel, squares / (count - 1), mask)


def merge_moments(moments: Tensor, stats: Tensor, eps: float) -> None:
    """Fills ``stats`` [3, C] (a view with dense rows): mean, 1 / sqrt(var + eps), unbiased var.

    The tiles' counts, means and squared distances are merged in their order (Chan, Golub and
    LeVeque's update)."""
    _, parts, channels = moments.shape
    block = 32
    with torch.cuda.device_of(moments):
        merge_moments_kernel[(triton.cdiv(channels, block),)](
            moments, stats, parts, channels, eps, stats.stride(0), BLOCK=block, num_warps=1
        )


@triton.jit(do_not_specialize=["total", "channels", "pixels"])
def apply_norm_kernel(
    z, y, residual, mean, scale, shift, total, channels, pixels,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``RESIDUAL`` is the activation after the residual, or None; all tensors dense alike."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < total
    channel = _channel_of(at, channels, pixels, CHANNELS_LAST)
    v = tl.load(z + at, mask, 0.0).to(tl.float32) - tl.load(mean + channel, mask, 0.0)
    v = v * tl.load(scale + channel, mask, 0.0) + tl.load(shift + channel, mask, 0.0)
    v = activate(v, ACTIVATION)
    if RESIDUAL is not None:
        v = activate(v + tl.load(residual + at, mask, 0.0).to(tl.float32), RESIDUAL)
    tl.store(y + at, v.to(y.dtype.element_ty), mask)


@triton.jit
def _channel_of(at, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """The channel of an element of a dense [N, C, H, W] tensor of ``pixels`` pixels an image."""
    if CHANNELS_LAST:
        return at % channels
    else:
        return at // pixels % channels


def apply_norm(z: Tensor, norm: Norm, residual: Tensor | None, residual_activation: str) -> Tensor:
    """Norm, activation, residual and its activation in one pass; like ``z``, which is dense."""
    y = torch.empty_like(z)
    block = 1024
    if residual is not None and residual.stride() != z.stride():
        residual = torch.empty_like(z).copy_(residual)
    with torch.cuda.device_of(z):
        apply_norm_kernel[(triton.cdiv(z.numel(), block),)](
            z, y, z if residual is None else residual, norm.mean, norm.scale, norm.shift,
            z.numel(), z.shape[1], z.shape[2] * z.shape[3],
            CHANNELS_LAST=_is_interleaved(z), ACTIVATION=norm.activation,
            RESIDUAL=None if residual is None else residual_activation, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return y


def _is_interleaved(z: Tensor) -> bool:
    return not z.is_contiguous()


@triton.jit(do_not_specialize=["images", "pixels", "share"])
def norm_sums_kernel(
    grad, z, mean, scale, shift, inv_std, parts, images, channels, pixels, share,
    stride_n, stride_c, stride_p, ACTIVATION: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of g * zhat and of g over ``share`` values a channel; g = grad * activation'(normed)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    part = tl.program_id(1)
    held = channel < channels
    average = tl.load(mean + channel, held, 0.0)[None, :]
    slope = tl.load(scale + channel, held, 0.0)[None, :]
    offset = tl.load(shift + channel, held, 0.0)[None, :]
    first = tl.zeros([CHANNELS], tl.float32)
    second = tl.zeros([CHANNELS], tl.float32)
    end = tl.minimum((part + 1) * share, images * pixels)
    for begin in range(part * share, end, BLOCK):
        value = begin + tl.arange(0, BLOCK)
        mask = (value < end)[:, None] & held[None, :]
        at = (value // pixels).to(tl.int64) * stride_n + (value % pixels) * stride_p
        at = at[:, None] + channel[None, :] * stride_c
        d = tl.load(z + at, mask, 0.0).to(tl.float32) - average
        g = activation_grad(
            tl.load(grad + at, mask, 0.0).to(tl.float32), d * slope + offset, ACTIVATION
        )
        g = tl.where(mask, g, 0.0)
        first += tl.sum(g * d, 0)
        second += tl.sum(g, 0)
    to = parts + part * 2 * channels + channel
    tl.store(to, first * tl.load(inv_std + channel, held, 0.0), held)
    tl.store(to + channels, second, held)


@triton.jit(do_not_specialize=["total", "channels", "pixels", "values"])
def norm_grad_kernel(
    grad, z, dz, mean, scale, shift, inv_std, sums, sums_step, total, channels, pixels, values,
    CHANNELS_LAST: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dz = scale * (g - mean(g) - zhat * mean(g * zhat)), means over a channel's ``values``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < total
    channel = _channel_of(at, channels, pixels, CHANNELS_LAST)
    slope = tl.load(scale + channel, mask, 0.0)
    d = tl.load(z + at, mask, 0.0).to(tl.float32) - tl.load(mean + channel, mask, 0.0)
    normed = d * slope + tl.load(shift + channel, mask, 0.0)
    g = activation_grad(tl.load(grad + at, mask, 0.0).to(tl.float32), normed, ACTIVATION)
    zhat = d * tl.load(inv_std + channel, mask, 0.0)
    mean_gz = tl.load(sums + channel, mask, 0.0) / values
    mean_g = tl.load(sums + sums_step + channel, mask, 0.0) / values
    v = slope * (g - mean_g - zhat * mean_gz)
    tl.store(dz + at, v.to(dz.dtype.element_ty), mask)


@triton.jit
def add_sums_kernel(parts, sums, count, channels, sums_step, BLOCK: tl.constexpr):
    """sums[row, c] = sum of parts[p, row, c] in their order; a row a program."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    mask = channel < channels
    total = tl.zeros([BLOCK], tl.float32)
    source = parts + row * channels + channel
    for _ in range(count):
        total += tl.load(source, mask, 0.0)
        source += 2 * channels
    tl.store(sums + row * sums_step + channel, total, mask)


def norm_grad(grad: Tensor, z: Tensor, norm: Norm, inv_std: Tensor, sums: Tensor) -> Tensor:
    """Gradient of ``z`` from that after its norm and activation. Fills ``sums`` [2, C] (a view with
    dense rows): of g * zhat and of g, the gradients of gamma and beta."""
    if grad.stride() != z.stride():
        grad = torch.empty_like(z).copy_(grad)
    channels, pixels = z.shape[1], z.shape[2] * z.shape[3]
    values = z.shape[0] * pixels
    interleaved = _is_interleaved(z)
    group = min(64, triton.next_power_of_2(channels)) if interleaved else 1
    groups = triton.cdiv(channels, group)
    block = 1024 // group if interleaved else 1024
    count = max(1, min(triton.cdiv(8 * processors(z.device), groups), triton.cdiv(values, block)))
    share = triton.cdiv(values, count)
    parts = torch.empty((count, 2, channels), dtype=torch.float32, device=z.device)
    dz = torch.empty_like(z)
    stride_p = channels if interleaved else 1
    stride_c = 1 if interleaved else pixels
    with torch.cuda.device_of(z):
        norm_sums_kernel[(groups, count)](
            grad, z, norm.mean, norm.scale, norm.shift, inv_std, parts, z.shape[0], channels,
            pixels, share, channels * pixels, stride_c, stride_p, ACTIVATION=norm.activation,
            CHANNELS=group, BLOCK=block, num_warps=4,
        )  # fmt: skip
        add_sums_kernel[(triton.cdiv(channels, 128), 2)](
            parts, sums, count, channels, sums.stride(0), BLOCK=128, num_warps=4
        )
        norm_grad_kernel[(triton.cdiv(z.numel(), 1024),)](
            grad, z, dz, norm.mean, norm.scale, norm.shift, inv_std, sums, sums.stride(0),
            z.numel(), channels, pixels, values, CHANNELS_LAST=interleaved,
            ACTIVATION=norm.activation, BLOCK=1024, num_warps=4,
        )  # fmt: skip
    return dz
