"""CUDA C++ kernels (csrc/cuda): all units of a layer in one launch."""

from __future__ import annotations

import functools

import torch

from .._tensor_format import GPU_DTYPES
from ..ops import CUDA_MISSING
from . import limits
from ._compiled import Compiled


class Cuda(Compiled):
    """``ops`` and ``device_type`` are others where the kernels run on the emulation of CUDA."""

    name = "cuda"
    limits = limits.CUDA

    def __init__(self, ops=torch.ops.bunit_kernels, device_type="cuda"):
        super().__init__(ops)
        self.device_type = device_type

    def why_not(self, device, dtype):
        if self.device_type == "cuda":
            if CUDA_MISSING is not None:
                return CUDA_MISSING
            if not torch.cuda.is_available():
                return "PyTorch sees no CUDA device (torch.cuda.is_available() is False)"
        if device is not None:
            if device.type != self.device_type:
                return f"it runs on {self.device_type.upper()} tensors, got one on {device}"
            if device.type == "cuda" and (reason := _too_old(device)) is not None:
                return reason
        if dtype is not None and dtype not in GPU_DTYPES:
            return f"it takes {', '.join(map(str, GPU_DTYPES))}, got {dtype}"
        return None


@functools.cache
def _too_old(device: torch.device) -> str | None:
    """Why the kernels' machine code does not run on a device; newer ones compile its PTX."""
    build = torch.ops.bunit_kernels.cuda_build()
    built_for = [int(number) for number in build.split(";")[0].split(",")]
    major, minor = torch.cuda.get_device_capability(device)
    if 100 * major + 10 * minor >= min(built_for):
        return None
    return (
        f"its kernels are built for compute capability {min(built_for) / 100:.1f} or newer, "
        f"{device} has {major}.{minor}: install again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )
