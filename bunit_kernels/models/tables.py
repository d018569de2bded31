"""Which blocks of a network are stacked layers: a table by stage, and the units that fit a block.

A table names, for each stage of a network, what its blocks are: ``"normal"`` for a dense block, or
the unit of a stacked layer in its place. One entry stands for every block of the stage, several
are repeated in turn over its blocks, and a stage that the table leaves out is normal::

    {"layer2": "2-4-m", "layer3": ("normal", "2-4-m", "2-4-m")}

The last width of a unit may be ``m``: what the block's channels ask for, ``out_channels / units``.
It is 2 in a 2-4-m unit of a block that keeps its width, and 4 where the block doubles it. A hybrid
layer is a sum of kinds with their shares: ``"3 x 2-4-m + 1 x 2-5-m"`` is three units of the first
kind for each of the second.

In place of a table ``"r"`` asks for the paper's strategy r, "all blocks but the first and the last
are replaced". **Our reading**: a block is a stage of the network, as in the authors' public
ResNet-18, whose first and last stages are normal.

A network built from a table has it as its attribute ``units``, expanded: an entry a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..units import UnitSpec

Table = Mapping[str, str | Sequence[str]]

NORMAL = "normal"

#: The paper's strategy r, in place of a table.
R = "r"

_KIND = re.compile(r"\s*(?:(\d+) x )?(\S+)\s*")
_OPEN_END = re.compile(r"-m(?=$|:)")


def choose_table(
    units: Table | str | None, default: Table, stages: Sequence[str], inner: Table | None = None
) -> Table:
    """The table that a network's argument ``units`` asks for.

    Args:
        units: ``None`` for ``default``, ``"r"`` for ``inner``, or a table, which is returned.
        stages: names of the network's stages in order.
        inner: the table of strategy r; ``None`` for ``default`` without the first and last stage.
    """
    if units is None:
        return default
    if units != R:
        return units
    if inner is not None:
        return inner
    return {s: entry for s, entry in default.items() if s not in (stages[0], stages[-1])}


def expand_table(table: Table, stages: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """What each block is: for every stage as many entries as it has blocks.

    Args:
        stages: the network's stages, and how many blocks each has.

    Raises:
        TypeError: ``table`` is no mapping, or an entry is neither a string nor strings.
        ValueError: a stage that the network does not have, or a stage with no entry.
    """
    if not isinstance(table, Mapping):
        raise TypeError(f"units must map stages to units, got {table!r}")
    unknown = [stage for stage in table if stage not in stages]
    if unknown:
        raise ValueError(
            f"units names {', '.join(map(repr, unknown))}, the stages of this network are "
            f"{', '.join(stages)}"
        )
    return {stage: _repeat(stage, table.get(stage, NORMAL), n) for stage, n in stages.items()}


def _repeat(stage: str, entries: str | Sequence[str], blocks: int) -> tuple[str, ...]:
    if isinstance(entries, (str, UnitSpec)):
        entries = (entries,)
    if not isinstance(entries, Sequence) or any(type(e) not in (str, UnitSpec) for e in entries):
        raise TypeError(f'units of {stage} must be like "2-4-m" or several of it, got {entries!r}')
    if not entries:
        raise ValueError(f'units of {stage} is empty; leave the stage out or say "{NORMAL}"')
    return tuple(str(entries[block % len(entries)]) for block in range(blocks))


def fit_units(entry: str, in_channels: int, out_channels: int) -> tuple[UnitSpec, ...]:
    """The units of a stacked layer from ``in_channels`` to ``out_channels``, their ``m`` settled;
    units of one kind are neighbours.

    Raises:
        ValueError: no number of such units does, or ``entry`` does not parse.
    """
    kinds = [_parse_kind(entry, part) for part in entry.split("+")]
    # Of an open end the widths alone: its groups must divide the settled one.
    specs = [
        (
            n,
            UnitSpec(
                _OPEN_END.sub("-1", unit.partition(":")[0] if _OPEN_END.search(unit) else unit)
            ),
        )
        for n, unit in kinds
    ]
    turns, rest = divmod(in_channels, sum(n * spec.in_channels for n, spec in specs))
    free = sum(n for n, unit in kinds if _OPEN_END.search(unit))
    taken = sum(n * s.out_channels for (n, s), (_, u) in zip(specs, kinds, strict=True)
                if not _OPEN_END.search(u))  # fmt: skip
    width = 1
    if rest == 0 and free:
        width, rest = divmod(out_channels - turns * taken, turns * free)
    elif rest == 0:
        rest = out_channels - turns * taken
    if rest or width < 1:
        raise ValueError(
            f"units {entry} do not lead from {in_channels} to {out_channels} channels: their first "
            f"widths must add up to {in_channels}, their last to {out_channels}"
        )
    return tuple(
        UnitSpec(_OPEN_END.sub(f"-{width}", unit)) for n, unit in kinds for _ in range(turns * n)
    )


def _parse_kind(entry: str, part: str) -> tuple[int, str]:
    match = _KIND.fullmatch(part)
    if match is None or match[1] == "0":
        raise ValueError(
            f"cannot parse {part.strip()!r} of the units {entry!r}: expected a unit such as "
            '"2-4-m", or "3 x 2-4-m", at least 1 of it'
        )
    return int(match[1] or 1), match[2]
