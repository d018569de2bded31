"""How large the units may be that the kernels of a backend take: the only such list."""

from __future__ import annotations

from dataclasses import dataclass

from ..layout import ConvGeometry, StackLayout


@dataclass(frozen=True)
class Limits:
    """The largest values taken: levels of a whole unit, any width, kernel size or padding of a
    unit, and weights of one level of all units. ``None``: any."""

    depth: int | None = None
    size: int | None = None
    weights: int | None = None

    def exceeded(
        self, layout: StackLayout, geometry: ConvGeometry | None, whole: bool
    ) -> str | None:
        """Which limit units go beyond, with both values, or ``None``; ``whole`` says whether all
        levels go to one operator, or one level at a time."""
        if whole and self.depth is not None and layout.depth > self.depth:
            return f"it takes units of up to {self.depth} levels, got {layout.depth}"
        size = layout.largest if geometry is None else geometry.largest
        if self.size is not None and size > self.size:
            return f"it takes widths, kernel sizes and paddings up to {self.size}, got {size}"
        if self.weights is not None and layout.most_weights > self.weights:
            return f"it takes up to {self.weights} weights a level, got {layout.most_weights}"
        return None


NONE = Limits()
CPP = Limits(depth=8, size=2**31 - 1)  # csrc/cpu/stack.h
CUDA = Limits(depth=8, size=2**15 - 1, weights=2**31 - 1)  # csrc/cuda/runs.cpp
TRITON = Limits(size=2**31 - 1, weights=2**31 - 1)  # triton_kernels/work.py
