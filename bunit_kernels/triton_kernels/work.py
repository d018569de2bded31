"""Work lists: what each unit of a level is, on the device, made once a layer and device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops._shapes import conv_rows

FIELDS = 7  # of a unit in the table: see ConvWork.table


class ConvWork(NamedTuple):
    """One convolutional level.

    ``table`` is int32 [units, 7]: first input channel, input channels, first output channel, output
    channels, kernel size, padding, first element of the weight. ``c_in``, ``c_out``, ``k`` and
    ``pad`` are those of all units where ``uniform``, else the largest.
    """

    table: Tensor
    units: int
    channels: tuple[int, int]  # of the level's input and output
    c_in: int
    c_out: int
    k: int
    pad: int
    uniform: bool


def conv_work(units: Sequence[int], device: torch.device) -> ConvWork:
    """The work list of a level's rows (csrc/schema.cpp), kept from call to call."""
    return _conv_work(tuple(units), device)


@functools.lru_cache(maxsize=512)
def _conv_work(units: tuple[int, ...], device: torch.device) -> ConvWork:
    rows: list[tuple[int, ...]] = []
    first_in = first_out = weight = 0
    for count, k, pad, (c_in, c_out) in conv_rows(units, 1):
        for _ in range(count):
            rows.append((first_in, c_in, first_out, c_out, k, pad, weight))
            first_in, first_out, weight = first_in + c_in, first_out + c_out, weight + c_in * c_out * k * k
    if weight >= 1 << 31:
        raise ValueError(f"a level of backend 'triton' takes up to 2^31 weights, got {weight}")
    _, c_ins, _, c_outs, ks, pads, _ = zip(*rows, strict=True)
    shapes = set(zip(c_ins, c_outs, ks, pads, strict=True))
    return ConvWork(
        torch.tensor(rows, dtype=torch.int32, device=device),
        len(rows), (first_in, first_out), max(c_ins), max(c_outs), max(ks), max(pads),
        len(shapes) == 1,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def processors(device: torch.device) -> int:
    """How many blocks a device works on at a time, about."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4
