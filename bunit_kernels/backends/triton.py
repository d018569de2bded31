"""Triton kernels (bunit_kernels/triton_kernels), compiled at first use."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from .._tensor_format import GPU_DTYPES
from ..ops import CPU_MISSING
from ..triton_kernels import NAMESPACE
from . import limits
from ._compiled import Compiled

OLDEST = (3, 6)


class Triton(Compiled):
    name = "triton"
    limits = limits.TRITON

    def __init__(self):
        super().__init__(getattr(torch.ops, NAMESPACE))

    def why_not(self, device, dtype):
        if CPU_MISSING is not None:  # it has the operators' schemas
            return CPU_MISSING
        if (reason := _no_triton()) is not None:
            return reason
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not interpreted and not torch.cuda.is_available():
            return (
                "PyTorch sees no CUDA device (torch.cuda.is_available() is False); to run it "
                "slowly on the CPU set TRITON_INTERPRET=1 before Python starts"
            )
        taken = "CPU tensors (TRITON_INTERPRET=1)" if interpreted else "CUDA tensors"
        if device is not None and device.type != ("cpu" if interpreted else "cuda"):
            return f"it runs on {taken}, got one on {device}"
        if dtype is not None and dtype not in GPU_DTYPES:
            return f"it takes {', '.join(map(str, GPU_DTYPES))}, got {dtype}"
        return None


@functools.cache
def _no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'triton>=3.6'"
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found < OLDEST:
        return f"it needs Triton {'.'.join(map(str, OLDEST))} or newer, got {triton.__version__}"
    return None
