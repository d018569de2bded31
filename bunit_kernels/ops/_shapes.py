"""Reading the rows of ints that describe a stack to an operator (csrc/schema.cpp)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def conv_rows(units: Sequence[int], depth: int) -> Iterator[tuple[int, int, int, Sequence[int]]]:
    """``(count, k, pad, widths)`` of each run of equal units."""
    step = 4 + depth
    for i in range(0, len(units), step):
        yield units[i], units[i + 1], units[i + 2], units[i + 3 : i + step]


def conv_level(units: Sequence[int], depth: int, level: int) -> list[int]:
    """The rows of one level."""
    rows: list[int] = []
    for count, k, pad, widths in conv_rows(units, depth):
        rows += [count, k, pad, widths[level], widths[level + 1]]
    return rows


def linear_rows(units: Sequence[int], depth: int) -> Iterator[tuple[int, Sequence[int]]]:
    """``(count, widths)`` of each run of equal units."""
    step = 2 + depth
    for i in range(0, len(units), step):
        yield units[i], units[i + 1 : i + step]


def linear_level(units: Sequence[int], depth: int, level: int) -> list[int]:
    """The rows of one level."""
    rows: list[int] = []
    for count, widths in linear_rows(units, depth):
        rows += [count, widths[level], widths[level + 1]]
    return rows


def conv_size(size: int, k: int, pad: int, stride: int, dilation: int) -> int:
    """Output size of one level along one axis."""
    return (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1


def is_channels_last(x: Tensor) -> bool:
    """Whether what is made of images ``x`` is channels_last; what is both, of one channel or one
    pixel, counts as contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_like_format(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An output in the memory format of ``x``, as the kernels choose it."""
    channels_last = is_channels_last(x)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return x.new_empty(shape).to(memory_format=memory_format)
