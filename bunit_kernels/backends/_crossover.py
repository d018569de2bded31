"""Where ``auto`` leaves a call on the CPU to PyTorch's own operators.

One table: the width of units (the widest level's narrower side) from which PyTorch is at least as
fast. Measured with ``python bench/crossover.py`` on two cores of an AMD EPYC (Zen 5, AVX-512),
torch 2.13.0 (CPU build), float32, 2026-11-24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import StackLayout

NEVER = 1 << 30

#: (operation, whether a gradient may follow, whether channels_last) -> width
FROM_WIDTH = {
    ("conv2d", False, False): NEVER,
    ("conv2d", False, True): 8,
    ("conv2d", True, False): 32,
    ("conv2d", True, True): 4,
    ("unit_conv2d", False, False): NEVER,
    ("unit_conv2d", False, True): 16,
    ("unit_conv2d", True, False): 8,
    ("unit_conv2d", True, True): 4,
    ("unit_conv2d_train", True, False): 16,
    ("unit_conv2d_train", True, True): 4,
    ("linear", False, False): 1,
    ("linear", True, False): 1,
    ("unit_linear", False, False): 8,
    ("unit_linear", True, False): 1,
}


def prefers_torch(op: str, layout: StackLayout, x: Tensor) -> bool:
    """Whether PyTorch's operators were measured faster than ``cpp`` for such units and input."""
    channels_last = x.dim() == 4 and x.stride(1) == 1 and not x.is_contiguous()
    grad = op == "unit_conv2d_train" or torch.is_grad_enabled()
    return layout.width >= FROM_WIDTH[op, grad, channels_last]
