"""Parameters and FLOPs of each layer of a network, as bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..metrics import LayerRow, LayerTable
from .figures import COLOURS, make_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 60
_STACKED, _OTHER = COLOURS[1], COLOURS[0]


def plot_layers(table: LayerTable, limits: dict[str, float]) -> Figure:
    """Two panels, parameters and FLOPs.

    Args:
        limits: ends of the axes of ``parameters`` and ``flops``, the same for networks that are to
            be compared.
    """
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter

    bars = _grouped(table.rows)
    names = [name for name, _ in bars]
    figure = make_figure(9, 1.3 + 0.19 * len(bars))
    panels = figure.subplots(1, 2, sharey=True)
    colours = [_STACKED if any(row.stacked for row in rows) else _OTHER for _, rows in bars]
    for axes, what, title in zip(
        panels, ("parameters", "flops"), ("parameters", "FLOPs of one item"), strict=True
    ):
        values = [sum(getattr(row, what) for row in rows) for _, rows in bars]
        axes.barh(range(len(bars)), values, 0.72, color=colours)
        axes.set_xlim(0, limits[what])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        tidy(axes, title)
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(bars)), names, fontsize=7)
    panels[0].set_ylim(len(bars) - 0.4, -0.6)
    if _STACKED in colours:
        figure.legend(
            [Patch(color=_STACKED), Patch(color=_OTHER)],
            ["with stacked layers", "other"],
            loc="outside lower center", ncols=2, frameon=False, fontsize=8,
        )  # fmt: skip
    return figure


def axis_limits(tables: Iterable[LayerTable]) -> dict[str, float]:
    """Ends of the axes that show the largest bar of any of ``tables``."""
    groups = [rows for table in tables for _, rows in _grouped(table.rows)]
    return {
        what: 1.05 * max((sum(getattr(row, what) for row in rows) for rows in groups), default=1)
        for what in ("parameters", "flops")
    }


def _grouped(rows: Iterable[LayerRow]) -> list[tuple[str, list[LayerRow]]]:
    """The rows under their names; of a network of very many layers, those that share the first
    parts of their names together, so that a bar stands for a block."""
    rows = list(rows)
    depth = max((row.name.count(".") for row in rows), default=0) + 1
    while True:
        groups: dict[str, list[LayerRow]] = {}
        for row in rows:
            groups.setdefault(".".join(row.name.split(".")[:depth]), []).append(row)
        if len(groups) <= _MOST_BARS or depth == 1:
            return list(groups.items())
        depth -= 1
