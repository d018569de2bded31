"""C++ kernels on all cores (csrc/cpu)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._tensor_format import DTYPES, is_channels_last
from ..layout import ConvGeometry
from ..ops import CPU_MISSING
from . import limits
from ._compiled import Compiled

#: Multiply-adds a value of the first level, of all units on average, up to which making it again
#: takes about as long as keeping it, or less.
RECOMPUTED_TAPS = 18
RECOMPUTED_TAPS_CHANNELS_LAST = 36


class Cpp(Compiled):
    name = "cpp"
    shuffles = True
    limits = limits.CPP

    def __init__(self):
        super().__init__(torch.ops.bunit_kernels)

    def why_not(self, device, dtype):
        if CPU_MISSING is not None:
            return CPU_MISSING
        if device is not None and device.type != "cpu":
            return f"it runs on CPU tensors, got one on {device}"
        if dtype is not None and dtype not in DTYPES:
            return f"it takes {', '.join(map(str, DTYPES))}, got {dtype}"
        return None

    def recomputes(self, x: Tensor, geometry: ConvGeometry) -> bool:
        """Where the first level's output is twice as large as the input or larger, and quickly
        made: it halves what a layer of 2-4-2 units keeps. Measured by ``python
        bench/recompute.py``."""
        if geometry.layout.depth == 1:
            return False
        first = geometry.layout.levels[0]
        widens = first.out_channels >= 2 * first.in_channels * geometry.stride**2
        most = RECOMPUTED_TAPS
        if is_channels_last(x):
            most = RECOMPUTED_TAPS_CHANNELS_LAST
        return widens and sum(first.weight_sizes) <= most * first.out_channels
