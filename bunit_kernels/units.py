"""Basic units: what one small network of a stacked layer looks like."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBERS = r"(\d+(?:,\d+)*)"
_SPEC = re.compile(rf"^(\d+(?:-\d+)+)(?::k{_NUMBERS})?(?::g{_NUMBERS})?$")


@dataclass(frozen=True, repr=False, init=False)
class UnitSpec:
    """Widths of one basic unit, its kernel sizes where it has its own, and its groups.

    A unit of widths ``c0-c1-...-cL`` is a chain of ``L`` *levels*; level ``i`` maps ``c[i-1]``
    channels to ``c[i]``. ``UnitSpec("2-4-2")`` has two levels, ``UnitSpec("2-4")`` one. Kernel
    sizes and groups are one number for every level or one a level: an inverted residual with a
    depthwise convolution in the middle is ``UnitSpec("4-24-24-4:k1,3,1:g1,24,1")``.

    Args:
        spec: ``"3-2-1"``, ``"3-2-1:k5"`` (a 5x5 unit), ``"4-8-4:k1,3:g2"``, a sequence of widths,
            or another spec.
        kernel_size: side of the square kernels, of every level or one a level; ``None`` leaves the
            choice to the layer.
        groups: of the convolutions, of every level or one a level, as ``nn.Conv2d`` has them;
            ``None`` for 1, where ``spec`` names none.

    Attributes:
        widths: ``(c0, ..., cL)``.
        kernel_size: an int where all levels are alike, else a tuple; or ``None``.
        groups: an int where all levels are alike, else a tuple.

    Raises:
        ValueError: the text does not parse, there are fewer than two widths, a number is below
            one, there are not as many kernel sizes or groups as levels, or groups do not divide a
            level's channels.
        TypeError: ``spec`` is none of the above.
    """

    widths: tuple[int, ...]
    kernel_size: int | tuple[int, ...] | None
    groups: int | tuple[int, ...]

    def __init__(
        self,
        spec: str | Sequence[int] | UnitSpec,
        kernel_size: int | Sequence[int] | None = None,
        groups: int | Sequence[int] | None = None,
    ):
        if isinstance(spec, UnitSpec):
            widths, own_kernel = spec.widths, spec.kernel_size
            own_groups = None if spec.groups == 1 else spec.groups
        elif isinstance(spec, str):
            widths, own_kernel, own_groups = _parse(spec)
        elif isinstance(spec, Sequence) and all(type(w) is int for w in spec):
            widths, own_kernel, own_groups = tuple(spec), None, None
        else:
            raise TypeError(
                "a unit is a string like '2-4-2' or '3-2-1:k5', a sequence of ints or a UnitSpec; "
                f"got {spec!r} of type {type(spec).__name__}"
            )
        if len(widths) < 2:
            raise ValueError(f"a unit needs at least two widths, got {spec!r}")
        if min(widths) < 1:
            raise ValueError(f"a unit's widths must be at least 1, got {spec!r}")
        depth = len(widths) - 1
        object.__setattr__(self, "widths", widths)
        for name, what, own, given in (
            ("kernel_size", "kernel size", own_kernel, kernel_size),
            ("groups", "number of groups", own_groups, groups),
        ):
            own, given = (_shortest(value, what, depth, spec) for value in (own, given))
            if own is not None and given is not None and own != given:
                raise ValueError(
                    f"unit {spec!r} already has {what} {_joined(own)}, got {_joined(given)} too"
                )
            object.__setattr__(self, name, own if given is None else given)
        if self.groups is None:
            object.__setattr__(self, "groups", 1)
        for level, g in enumerate(self.level_groups):
            c_in, c_out = widths[level : level + 2]
            if c_in % g or c_out % g:
                raise ValueError(
                    f"groups must divide a level's channels: level {level + 1} of unit {spec!r} "
                    f"has {c_in} -> {c_out} channels and {g} groups"
                )

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

    @property
    def level_groups(self) -> tuple[int, ...]:
        """Groups of each level."""
        return _one_each(self.groups, self.depth)

    def level_kernels(self, default: int | None) -> tuple[int | None, ...]:
        """Kernel size of each level, in a layer whose own is ``default``."""
        return _one_each(default if self.kernel_size is None else self.kernel_size, self.depth)

    def level(self, index: int) -> UnitSpec:
        """One level as a unit of its own."""
        kernel = self.level_kernels(None)[index]
        return UnitSpec(self.widths[index : index + 2], kernel, self.level_groups[index])

    def __str__(self) -> str:
        text = "-".join(map(str, self.widths))
        if self.kernel_size is not None:
            text += f":k{_joined(self.kernel_size)}"
        return text if self.groups == 1 else f"{text}:g{_joined(self.groups)}"

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


def _shortest(value, what: str, depth: int, spec) -> int | tuple[int, ...] | None:
    """What ``value`` says of each level: an int where all levels are alike, else a tuple; ``None``
    where it says nothing."""
    if value is None:
        return None
    listed = isinstance(value, (tuple, list))
    values = tuple(value) if listed else (value,)
    for v in values:
        if type(v) is not int or v < 1:
            raise ValueError(f"a {what} must be an int of at least 1, got {v!r} in unit {spec!r}")
    if listed and len(values) != depth:
        raise ValueError(
            f"expected one {what} or as many as unit {spec!r} has levels, {depth}; got "
            f"{len(values)}: {_joined(values)}"
        )
    return values[0] if len(set(values)) == 1 else values


def _one_each(value, depth: int) -> tuple:
    return value if isinstance(value, tuple) else (value,) * depth


def _joined(value: int | tuple[int, ...]) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(text: str) -> tuple[tuple[int, ...], int | tuple | None, int | tuple | None]:
    """Widths; kernel sizes and groups, one for all levels or several, ``None`` where not named."""
    match = _SPEC.match(text.strip())
    if match is None:
        raise ValueError(
            f"cannot parse unit {text!r}: expected widths joined by '-', at least two, and "
            "optionally ':k' with the kernel size and ':g' with the groups, of all levels or one "
            "a level, like '2-4-2', '3-2-1:k5' or '4-24-24-4:k1,3,1:g1,24,1'"
        )
    widths = tuple(map(int, match[1].split("-")))
    return widths, _numbers(match[2]), _numbers(match[3])


def _numbers(text: str | None) -> int | tuple[int, ...] | None:
    if text is None:
        return None
    numbers = tuple(map(int, text.split(",")))
    return numbers[0] if len(numbers) == 1 else numbers


#: The pool of the paper's exploration experiments.
PAPER_POOL = tuple(UnitSpec(s) for s in ("1-2-1", "1-2-2", "1-2-3", "2-1-2", "2-1-1", "3-2-1"))
