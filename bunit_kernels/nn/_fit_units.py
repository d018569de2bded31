"""Units that lead from any number of channels to any other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from ..units import UnitSpec


def unit_pattern(unit: str | UnitSpec | Sequence[int]) -> UnitSpec:
    """``unit`` as a spec that any convolution can be fitted with.

    Its last width is settled by each convolution, so that ``"2-4-m"`` is the same as ``"2-4-2"``.

    Raises:
        ValueError: one level only (no unit: it has no hidden layer), or a kernel size, which is
            the convolution's; also what :class:`UnitSpec` raises.
    """
    if isinstance(unit, str):
        unit = unit.strip().removesuffix("-m") + "-1" if unit.strip().endswith("-m") else unit
    spec = UnitSpec(unit)
    if spec.depth < 2:
        raise ValueError(f"a unit needs a hidden layer, like 2-4-2; got {spec}")
    if spec.kernel_size is not None:
        raise ValueError(f"the kernel size is that of the convolution replaced; got {spec}")
    return spec


def fit_units(pattern: UnitSpec, in_channels: int, out_channels: int) -> tuple[UnitSpec, ...]:
    """Units like ``pattern`` that lead from ``in_channels`` to ``out_channels``.

    There are ``ceil(in_channels / first width)`` of them, at most one an output channel. All have
    the first width, but that the last one takes the channels that are left. Output channels are
    shared out in proportion: 64 -> 128 channels by 2-4-2 are 32 units 2-4-4. A narrower unit's
    hidden widths shrink in proportion: 10 -> 10 by 4-8-4 are 4-8-4, 4-8-4 and 2-4-2.
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
        UnitSpec((c_in, *(hidden(width, c_in) for width in pattern.widths[1:-1]), c_out))
        for c_in, c_out in zip(ins, outs, strict=True)
    )


def _even(total: int, count: int) -> list[int]:
    return _in_proportion(total, [1] * count)


def _in_proportion(total: int, shares: list[int]) -> list[int]:
    """``total`` split into whole numbers that are, added up from the left, as close below the
    ``shares`` as can be."""
    whole = sum(shares)
    ends = [total * reached // whole for reached in accumulate(shares, initial=0)]
    return [end - start for start, end in pairwise(ends)]
