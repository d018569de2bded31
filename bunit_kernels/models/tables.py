"""Which blocks of a network are stacked layers: a table by stage, and the units that fit a block.

A table names, for each stage of a network, what its blocks are: ``"normal"`` for a dense block, or
the unit of a stacked layer in its place. One entry stands for every block of the stage, several
are repeated in turn over its blocks, and a stage that the table leaves out is normal::

    {"layer2": "2-4-m", "layer3": ("normal", "2-4-m", "2-4-m")}

The last width of a unit may be ``m``: what the block's channels ask for, ``out_channels / units``.
It is 2 in a 2-4-m unit of a block that keeps its width, and 4 where the block doubles it.

A network built from a table has it as its attribute ``units``, expanded: an entry a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..units import UnitSpec

Table = Mapping[str, str | Sequence[str]]

NORMAL = "normal"

_OPEN_END = re.compile(r"^\s*(\d+)((?:-\d+)*)-m(?=$|:)")


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


def fit_units(unit: str, in_channels: int, out_channels: int) -> tuple[UnitSpec, int]:
    """The unit with its ``m`` settled, and how many of it lead from ``in_channels`` to
    ``out_channels``.

    Raises:
        ValueError: no number of such units does, or ``unit`` does not parse.
    """

    def settled(match: re.Match) -> str:
        count = max(1, in_channels // max(1, int(match[1])))
        return f"{match[1]}{match[2]}-{max(1, out_channels // count)}"

    spec = UnitSpec(_OPEN_END.sub(settled, unit))  # settled first: groups must divide it
    count = in_channels // spec.in_channels
    widths = (count * spec.in_channels, count * spec.out_channels)
    if widths != (in_channels, out_channels):
        raise ValueError(
            f"units {unit} do not lead from {in_channels} to {out_channels} channels: their first "
            f"widths must add up to {in_channels}, their last to {out_channels}"
        )
    return spec, count
