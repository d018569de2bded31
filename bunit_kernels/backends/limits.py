"""How large the units may be that the kernels of a backend take: the only such list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

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
        for name, value in _sizes(layout, geometry, whole):
            most = getattr(self, name)
            if most is not None and value > most:
                return f"it takes {_WORDS[name]} up to {most}, got {value}"
        return None


_WORDS = {
    "levels": "numbers of levels",
    "units": "numbers of units",
    "width": "widths",
    "reach": "kernel sizes, paddings and dilations",
    "stride": "strides",
    "weights": "numbers of weights a level",
}
assert list(_WORDS) == [field.name for field in fields(Limits)]


def _sizes(
    layout: StackLayout, geometry: ConvGeometry | None, whole: bool
) -> Iterator[tuple[str, int]]:
    if whole:
        yield "levels", layout.depth
    yield "units", max(len(level.blocks) for level in layout.levels)
    yield "width", layout.widest
    yield "weights", layout.most_weights
    if geometry is not None:
        yield "reach", geometry.reach
        yield "stride", geometry.stride


NONE = Limits()
CPP = Limits(MAX_DEPTH, MAX_UNITS, MAX_INT, MAX_KERNEL, MAX_STRIDE)
TRITON = replace(CPP, weights=MAX_INT)  # triton_kernels/work.py
CUDA = replace(TRITON, width=2**15 - 1)  # csrc/cuda/runs.cpp
