"""What an input's memory format and dtype may be."""

from __future__ import annotations

import torch
from torch import Tensor

#: Of inputs of stacked layers, and of backend ``cpp``.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Of the kernels for GPUs.
GPU_DTYPES = tuple(dtype for dtype in DTYPES if dtype != torch.float64)


def is_channels_last(x: Tensor) -> bool:
    """Whether outputs for ``x`` are channels_last: it is dense in that order and in no other.
    Slices with gaps, and images that lie in both orders (one channel, one pixel), are not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def format_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format
