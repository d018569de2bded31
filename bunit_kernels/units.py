"""Basic units: what one small network of a stacked layer looks like."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

_SPEC = re.compile(r"^(\d+(?:-\d+)+)(?::k(\d+))?$")


@dataclass(frozen=True, repr=False, init=False)
class UnitSpec:
    """Widths of one basic unit, and its kernel size where it has one of its own.

    A unit of widths ``c0-c1-...-cL`` is a chain of ``L`` *levels*; level ``i`` maps ``c[i-1]``
    channels to ``c[i]``. ``UnitSpec("2-4-2")`` has two levels, ``UnitSpec("2-4")`` one.

    Args:
        spec: ``"3-2-1"``, ``"3-2-1:k5"`` (a 5x5 unit), a sequence of widths, or another spec.
        kernel_size: side of the square kernels of every level; ``None`` leaves the choice to the
            layer.

    Raises:
        ValueError: the text does not parse, there are fewer than two widths, or a number is
            below one.
        TypeError: ``spec`` is none of the above.
    """

    widths: tuple[int, ...]
    kernel_size: int | None

    def __init__(self, spec: str | Sequence[int] | UnitSpec, kernel_size: int | None = None):
        if isinstance(spec, UnitSpec):
            widths, own = spec.widths, spec.kernel_size
        elif isinstance(spec, str):
            widths, own = _parse(spec)
        elif isinstance(spec, Sequence) and all(type(w) is int for w in spec):
            widths, own = tuple(spec), None
        else:
            raise TypeError(
                "a unit is a string like '2-4-2' or '3-2-1:k5', a sequence of ints or a UnitSpec; "
                f"got {spec!r} of type {type(spec).__name__}"
            )
        if kernel_size is not None and own is not None and own != kernel_size:
            raise ValueError(f"unit {spec!r} already has kernel size {own}, got {kernel_size} too")
        kernel_size = own if kernel_size is None else kernel_size
        if len(widths) < 2:
            raise ValueError(f"a unit needs at least two widths, got {spec!r}")
        if min(widths) < 1:
            raise ValueError(f"a unit's widths must be at least 1, got {spec!r}")
        if kernel_size is not None and (type(kernel_size) is not int or kernel_size < 1):
            raise ValueError(f"a kernel size must be an int of at least 1, got {kernel_size!r}")
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "kernel_size", kernel_size)

    @property
    def in_channels(self) -> int:
        return self.widths[0]

    @property
    def out_channels(self) -> int:
        return self.widths[-1]

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.widths) - 1

    def __str__(self) -> str:
        text = "-".join(map(str, self.widths))
        return text if self.kernel_size is None else f"{text}:k{self.kernel_size}"

    def __repr__(self) -> str:
        return f'UnitSpec("{self}")'

    @staticmethod
    def sample(
        num_units: int,
        pool: Sequence[str | UnitSpec] | None = None,
        seed: int | None = None,
    ) -> tuple[UnitSpec, ...]:
        """Draws ``num_units`` specs from ``pool`` (``PAPER_POOL``), uniformly and independently.

        The same ``seed`` gives the same units on every machine and Python version.

        Raises:
            ValueError: ``num_units`` is below one or the pool is empty.
        """
        pool = PAPER_POOL if pool is None else tuple(UnitSpec(spec) for spec in pool)
        if num_units < 1:
            raise ValueError(f"num_units must be at least 1, got {num_units}")
        if not pool:
            raise ValueError("the pool to sample units from is empty")
        # randrange's algorithm may change between Python versions, random() never has.
        rng = random.Random(seed)
        return tuple(pool[int(rng.random() * len(pool))] for _ in range(num_units))


def _parse(text: str) -> tuple[tuple[int, ...], int | None]:
    match = _SPEC.match(text.strip())
    if match is None:
        raise ValueError(
            f"cannot parse unit {text!r}: expected widths joined by '-', at least two, and an "
            "optional ':k' with the kernel size, like '2-4-2' or '3-2-1:k5'"
        )
    widths = tuple(int(width) for width in match[1].split("-"))
    return widths, None if match[2] is None else int(match[2])


#: The pool of the paper's exploration experiments.
PAPER_POOL = tuple(UnitSpec(s) for s in ("1-2-1", "1-2-2", "1-2-3", "2-1-2", "2-1-1", "3-2-1"))
