"""Units that lead from any number of channels to any other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import gcd

from ..units import UnitSpec

_OPEN_END = re.compile(r"(\d+)-m(?=$|:)")


def unit_pattern(unit: str | UnitSpec | Sequence[int]) -> UnitSpec:
    """``unit`` as a spec that any convolution can be fitted with.

    Its last width is settled by each convolution, so that ``"2-4-m"`` is the same as ``"2-4-2"``.

    Raises:
        ValueError: one level only (no unit: it has no hidden layer), or an even kernel size, which
            no padding keeps the image's size at; also what :class:`UnitSpec` raises.
    """
    if isinstance(unit, str):
        unit = _OPEN_END.sub(r"\1-\1", unit.strip())  # a width that its groups divide
    spec = UnitSpec(unit)
    if spec.depth < 2:
        raise ValueError(f"a unit needs a hidden layer, like 2-4-2; got {spec}")
    even = next((k for k in spec.level_kernels(1) if k % 2 == 0), None)
    if even is not None:
        raise ValueError(f"a unit's kernel sizes must be odd to keep the size, got {even}: {spec}")
    return spec


def fit_units(pattern: UnitSpec, in_channels: int, out_channels: int) -> tuple[UnitSpec, ...]:
    """Units like ``pattern`` that lead from ``in_channels`` to ``out_channels``.

    There are ``ceil(in_channels / first width)`` of them, at most one an output channel. All have
    the first width, but that the last one takes the channels that are left. Output channels are
    shared out in proportion: 64 -> 128 channels by 2-4-2 are 32 units 2-4-4. A narrower unit's
    hidden widths shrink in proportion: 10 -> 10 by 4-8-4 are 4-8-4, 4-8-4 and 2-4-2. Kernel sizes
    and groups: see ``of_widths``.
    """
    first = pattern.in_channels
    count = -(-in_channels // first)
    if count <= out_channels:
        ins = [first] * (count - 1) + [in_channels - first * (count - 1)]
    else:
        count = out_channels
        ins = _even(in_channels, count)
    outs = _in_proportion(out_channels, ins)
    if min(outs) < 1:
        outs = _even(out_channels, count)

    def hidden(width: int, c_in: int) -> int:
        return max(1, round(width * min(1.0, c_in / first)))

    return tuple(
        of_widths(pattern, (c_in, *(hidden(w, c_in) for w in pattern.widths[1:-1]), c_out))
        for c_in, c_out in zip(ins, outs, strict=True)
    )


def of_widths(pattern: UnitSpec, widths: Sequence[int]) -> UnitSpec:
    """A unit like ``pattern`` of other widths. Levels with a group for each input channel keep
    that, others their groups; of either there are as many as divide both widths."""
    groups = [
        gcd(c_in if g == before > 1 else g, c_in, c_out)
        for g, before, (c_in, c_out) in zip(
            pattern.level_groups, pattern.widths, pairwise(widths), strict=False
        )
    ]
    return UnitSpec(widths, pattern.kernel_size, groups)


def _even(total: int, count: int) -> list[int]:
    return _in_proportion(total, [1] * count)


def _in_proportion(total: int, shares: list[int]) -> list[int]:
    """``total`` split into whole numbers that are, added up from the left, as close below the
    ``shares`` as can be."""
    whole = sum(shares)
    ends = [total * reached // whole for reached in accumulate(shares, initial=0)]
    return [end - start for start, end in pairwise(ends)]
