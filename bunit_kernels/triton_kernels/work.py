"""Work lists: what each unit of a level is, on the device, made once a layer and device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._device_index import to_gpu_once
from ..ops._shapes import conv_rows, linear_rows


class ConvWork(NamedTuple):
    """One convolutional level.

    ``table`` is int32 [units, 7]: first input channel, input channels, first output channel, output
    channels, kernel size, padding, first element of the weight. ``c_in``, ``c_out`` and ``k`` are
    those of all units where ``uniform``, else the largest.
    """

    table: Tensor
    units: int
    c_in: int
    c_out: int
    k: int
    uniform: bool


def conv_work(units: Sequence[int], device: torch.device) -> ConvWork:
    """The work list of a level's rows (csrc/schema.cpp), kept from call to call."""
    return _conv_work(tuple(units), device)


@functools.cache
def _conv_work(units: tuple[int, ...], device: torch.device) -> ConvWork:
    rows: list[tuple[int, ...]] = []
    first_in = first_out = weight = 0
    for count, k, pad, (c_in, c_out) in conv_rows(units, 1):
        for _ in range(count):
            rows.append((first_in, c_in, first_out, c_out, k, pad, weight))
            first_in, first_out, weight = (
                first_in + c_in,
                first_out + c_out,
                weight + c_in * c_out * k * k,
            )
    if weight >= 1 << 31:
        raise ValueError(f"a level of backend 'triton' takes up to 2^31 weights, got {weight}")
    _, c_ins, _, c_outs, ks, pads, _ = zip(*rows, strict=True)
    shapes = set(zip(c_ins, c_outs, ks, pads, strict=True))
    return ConvWork(
        _on_device(torch.tensor(rows, dtype=torch.int32), device),
        len(rows), max(c_ins), max(c_outs), max(ks), len(shapes) == 1,
    )  # fmt: skip


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    """A copy, which the caches of this file never free."""
    return to_gpu_once(table, device, "a work list of backend 'triton'")


@functools.lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """How many blocks a device works on at a time, about."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4


def columns(units: Sequence[int], transposed: bool, device: torch.device) -> tuple[Tensor, int]:
    """Linear units by output channel (``transposed``: by input channel, for its gradient).

    int32 [4, channels]: the first channel read, how many are, the first element of their weights
    and the step between these; and the largest of the second."""
    return _columns(tuple(units), transposed, device)


@functools.cache
def _columns(units: tuple[int, ...], transposed: bool, device: torch.device) -> tuple[Tensor, int]:
    found: list[tuple[int, int, int, int]] = []
    first_in = first_out = weight = 0
    for count, (c_in, c_out) in linear_rows(units, 1):
        for _ in range(count):
            if transposed:
                found += [(first_out, c_out, weight + i, c_in) for i in range(c_in)]
            else:
                found += [(first_in, c_in, weight + o * c_in, 1) for o in range(c_out)]
            first_in, first_out, weight = first_in + c_in, first_out + c_out, weight + c_in * c_out
    table = _on_device(torch.tensor(found, dtype=torch.int32).t().contiguous(), device)
    return table, max(number for _, number, _, _ in found)


MOST_LEVELS = 4  # of units that one launch goes through


class LinearWork(NamedTuple):
    """Linear units of up to 4 levels.

    ``table`` is int32 [units, 15]: the widths (5), first input and output channel, first element of
    each level's weight (4) and of each level's bias (4). ``widths`` are the largest.
    """

    table: Tensor
    units: int
    widths: tuple[int, ...]


def linear_work(units: Sequence[int], depth: int, device: torch.device) -> LinearWork:
    """The work list of a stack's rows, kept from call to call."""
    return _linear_work(tuple(units), depth, device)


@functools.cache
def _linear_work(units: tuple[int, ...], depth: int, device: torch.device) -> LinearWork:
    rows: list[list[int]] = []
    channels, weights = [0] * (depth + 1), [0] * depth
    unused = [0] * (MOST_LEVELS - depth)
    for count, widths in linear_rows(units, depth):
        for _ in range(count):
            ends = [channels[0], channels[-1]]
            rows.append([*widths, *unused, *ends, *weights, *unused, *channels[1:], *unused])
            weights = [w + a * b for w, a, b in zip(weights, widths, widths[1:], strict=False)]
            channels = [c + width for c, width in zip(channels, widths, strict=True)]
    largest = tuple(max(row[i] for row in rows) for i in range(depth + 1))
    return LinearWork(_on_device(torch.tensor(rows, dtype=torch.int32), device), len(rows), largest)
