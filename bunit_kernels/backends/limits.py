"""How large the units may be that the kernels of a backend take: the only such list."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import cached_property

from ..layout import ConvGeometry, StackLayout
from ..ops import MAX_DEPTH, MAX_INT, MAX_KERNEL, MAX_STRIDE, MAX_UNITS


@dataclass(frozen=True)
class Limits:
    """The largest values taken; ``None``: any. Levels of a whole unit, units of a layer (each as
    many as its groups), channels of a unit at any level, kernel size, padding and dilation
    (``reach``), stride, and weights of one level of all units."""

    levels: int | None = None
    units: int | None = None
    width: int | None = None
    reach: int | None = None
    stride: int | None = None
    weights: int | None = None

    def exceeded(
        self, layout: StackLayout, geometry: ConvGeometry | None, whole: bool
    ) -> str | None:
        """Which limit units go beyond, with both values, or ``None``; ``whole`` says whether all
        levels go to one operator, or one level at a time."""
        values = (
            layout.depth if whole else 0, layout.most_blocks, layout.widest,
            0 if geometry is None else geometry.reach, 0 if geometry is None else geometry.stride,
            layout.most_weights,
        )  # fmt: skip
        for most, value, words in zip(self._most, values, _WORDS, strict=True):
            if most is not None and value > most:
                return f"it takes {words} up to {most}, got {value}"
        return None

    @cached_property
    def _most(self) -> tuple[int | None, ...]:
        return astuple(self)


#: What the fields of ``Limits`` are, in their order.
_WORDS = (
    "numbers of levels",
    "numbers of units",
    "widths",
    "kernel sizes, paddings and dilations",
    "strides",
    "numbers of weights a level",
)


NONE = Limits()
CPP = Limits(MAX_DEPTH, MAX_UNITS, MAX_INT, MAX_KERNEL, MAX_STRIDE)
TRITON = replace(CPP, weights=MAX_INT)  # triton_kernels/work.py
CUDA = replace(TRITON, width=2**15 - 1)  # csrc/cuda/runs.cpp
