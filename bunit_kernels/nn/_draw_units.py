"""Which units of a pool stand for units that are replaced."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from ..units import UnitSpec

_Widths = tuple[int, int]  # channels in, channels out


def draw_units(
    old: Mapping[int, UnitSpec], pool: Sequence[UnitSpec], rng: random.Random, where: str
) -> dict[int, UnitSpec]:
    """A unit of the pool for each unit of ``old``, by number: one of its input and output widths,
    drawn uniformly; those for which there is none get units of the same sums together.

    Args:
        where: of which layer they are, for errors.

    Raises:
        ValueError: units of the pool differ in depth from the old ones, or none fit.
    """
    depth = next(iter(old.values())).depth
    other = next((spec for spec in pool if spec.depth != depth), None)
    if other is not None:
        raise ValueError(
            f"units{where} have {depth} levels, unit {other} of the pool has {other.depth}"
        )
    by_widths: dict[_Widths, list[UnitSpec]] = {}
    for spec in pool:
        by_widths.setdefault(_widths(spec), []).append(spec)
    unmatched = [number for number, spec in old.items() if _widths(spec) not in by_widths]
    wanted = {number: _widths(spec) for number, spec in old.items()}
    shares = _shares([wanted[number] for number in unmatched], list(by_widths), rng)
    if shares is None:
        raise ValueError(_nothing_fits({n: old[n] for n in unmatched}, list(by_widths), where))
    wanted |= dict(zip(unmatched, shares, strict=True))
    # random(), as UnitSpec.sample: the same on every Python version.
    drawn = {}
    for number, widths in wanted.items():
        fitting = by_widths[widths]
        drawn[number] = fitting[int(rng.random() * len(fitting))]
    return drawn


def _widths(spec: UnitSpec) -> _Widths:
    return spec.in_channels, spec.out_channels


def _shares(
    old: Sequence[_Widths], known: Sequence[_Widths], rng: random.Random
) -> list[_Widths] | None:
    """As many of the ``known`` widths as there are ``old`` ones, of the same sums, drawn one after
    another among those that leave a rest that others can fill; ``None`` where there are none."""
    sums = [{(0, 0)}]  # of 0, 1, 2, ... units
    total = sum(w[0] for w in old), sum(w[1] for w in old)
    for _ in old:
        sums.append({
            (i + a, j + b)
            for i, j in sums[-1] for a, b in known
            if i + a <= total[0] and j + b <= total[1]
        })  # fmt: skip
    if total not in sums[-1]:
        return None
    shares, (i, j) = [], total
    for reachable in reversed(sums[:-1]):
        fitting = [(a, b) for a, b in known if (i - a, j - b) in reachable]
        a, b = fitting[int(rng.random() * len(fitting))]
        shares.append((a, b))
        i, j = i - a, j - b
    return shares


def _nothing_fits(old: Mapping[int, UnitSpec], known: Sequence[_Widths], where: str) -> str:
    asked = ", ".join(f"{number} ({spec})" for number, spec in old.items())
    have = ", ".join(f"{a} -> {b}" for a, b in sorted(known))
    total = sum(s.in_channels for s in old.values()), sum(s.out_channels for s in old.values())
    return (
        f"no units of the pool can stand for units {asked}{where}: of channels in -> out it has "
        f"{have}, and no {len(old)} of these add up to {total[0]} -> {total[1]}"
    )
