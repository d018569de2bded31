"""C++ kernels on all cores (csrc/cpu)."""

from __future__ import annotations

import torch

from ..ops import CPU_MISSING
from ._compiled import Compiled

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Cpp(Compiled):
    name = "cpp"

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
