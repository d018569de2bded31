"""Where ``auto`` leaves a call on the CPU to PyTorch's own operators."""

from __future__ import annotations

from ..layout import StackLayout


def prefers_torch(op: str, layout: StackLayout, x) -> bool:
    """Whether PyTorch's operators were measured faster than ``cpp`` for such units."""
    return False
