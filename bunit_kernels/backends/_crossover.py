"""Where ``auto`` leaves a call to PyTorch's own operators.

CPU: the width of units (``StackLayout.width``) from which PyTorch's convolutions are at least as
fast; its products of linear units are at no width (up to 64). Measured with
``python bench/crossover.py``, torch 2.13.0 (CPU build), float32, on two otherwise idle cores of
virtual machines: with AVX-512 an Intel Xeon (with AMX too), 2026-11-26, and an AMD EPYC (Zen 4),
2026-11-27, where convolutions came out alike; with AVX2 an AMD EPYC (Zen 3), 2026-11-27.
Processors with less than that, and others than x86, are taken to be like the last.

CUDA: one width, by arithmetic and not measured: our kernels run on the plain FMA units, and a
convolution on tensor cores pays once its tiles of 16 channels are full. Triton's kernels for such
widths wait for a GPU that measures them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import ConvGeometry, StackLayout
from ..ops import CPU_MISSING

NEVER = 1 << 30
SHORT = 16  # pixels a row


class FromWidth(NamedTuple):
    """The width for images, and that for images of rows shorter than ``SHORT``."""

    long_rows: int
    short_rows: int


#: (operation, whether a gradient may follow, whether channels_last) -> width
WITH_AVX512 = {
    ("conv2d", False, False): FromWidth(NEVER, 64),
    ("conv2d", False, True): FromWidth(16, 16),
    ("conv2d", True, False): FromWidth(16, 8),
    ("conv2d", True, True): FromWidth(4, 4),
    ("unit_conv2d", False, False): FromWidth(NEVER, 64),
    ("unit_conv2d", False, True): FromWidth(32, 64),
    ("unit_conv2d", True, False): FromWidth(8, 16),
    ("unit_conv2d", True, True): FromWidth(4, 8),
    ("unit_conv2d_train", True, False): FromWidth(48, 32),
    ("unit_conv2d_train", True, True): FromWidth(16, 16),
}
WITH_AVX2 = {
    ("conv2d", False, False): FromWidth(NEVER, NEVER),
    ("conv2d", False, True): FromWidth(64, 64),
    ("conv2d", True, False): FromWidth(32, 32),
    ("conv2d", True, True): FromWidth(32, 32),
    ("unit_conv2d", False, False): FromWidth(NEVER, NEVER),
    ("unit_conv2d", False, True): FromWidth(64, NEVER),
    ("unit_conv2d", True, False): FromWidth(32, 16),
    ("unit_conv2d", True, True): FromWidth(64, 32),
    ("unit_conv2d_train", True, False): FromWidth(64, NEVER),
    ("unit_conv2d_train", True, True): FromWidth(64, 32),
}
HAS_AVX512 = CPU_MISSING is None and torch.ops.bunit_kernels.cpu_isa() == "avx512"
CONVOLUTIONS = WITH_AVX512 if HAS_AVX512 else WITH_AVX2
CUDA_FROM_WIDTH = 16


def prefers_torch(op: str, layout: StackLayout, geometry: ConvGeometry | None, x: Tensor) -> bool:
    """Whether PyTorch's operators were measured (on CUDA: are expected) to be faster than ours for
    such units and input."""
    if x.is_cuda:
        return layout.width >= CUDA_FROM_WIDTH
    if geometry is None or torch_errs(geometry, x):
        return False
    grad = op == "unit_conv2d_train" or torch.is_grad_enabled()
    channels_last = x.stride(1) == 1 and not x.is_contiguous()
    from_width = CONVOLUTIONS[op, grad, channels_last]
    short = x.shape[-1] < SHORT
    return layout.width >= (from_width.short_rows if short else from_width.long_rows)


def torch_errs(geometry: ConvGeometry, x: Tensor) -> bool:
    """Whether PyTorch's own convolution of ``x`` is wrong on processors with AMX, forward and back:
    bfloat16 outputs one pixel wide of a stride above 1 (torch 2.13, pytorch/pytorch#188426)."""
    if x.dtype != torch.bfloat16 or geometry.stride == 1:
        return False
    return geometry.level_sizes(*x.shape[2:])[1][1] == 1
