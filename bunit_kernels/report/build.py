"""A report from its runs: all plots and the page, in memory until all of it is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..metrics import LayerTable
from ..train.files import write_atomically
from .figures import to_png
from .layer_plot import axis_limits, plot_layers
from .networks import layer_tables
from .page import LayerSection, Picture, RunSection, UnitSection, render_page
from .runs import TrainedRun
from .tradeoff_plot import plot_tradeoff
from .training_plot import plot_training
from .units_seen import LayerMaps, TrainedUnits

PAGE = "report.html"


def build_report(
    runs: Sequence[TrainedRun], units: Sequence[TrainedUnits] = ()
) -> dict[str, bytes]:
    """Contents of the files of a report, by name: the page and the plots that it shows.

    Args:
        units: those of each run, or none.

    Raises:
        UserError: a network whose units are to be seen cannot run here.
    """
    tradeoffs = [
        Picture(
            f"accuracy_{what}.png",
            to_png(plot_tradeoff(runs, what)),
            f"Accuracy against {title}: the networks of the runs, and published results.",
        )
        for what, title in (("flops", "FLOPs"), ("parameters", "parameters"))
    ]
    sections = [
        _section(run, f"{i + 1}_{_slug(run.title)}", units[i] if units else None)
        for i, run in enumerate(runs)
    ]
    pictures = [*tradeoffs, *(picture for s in sections for picture in s.pictures)]
    files = {picture.file: picture.content for picture in pictures}
    return {PAGE: render_page(sections, tradeoffs).encode(), **files}


def write_report(files: dict[str, bytes], folder: Path) -> None:
    """Writes the files of a report, each whole or not at all, the page last.

    Raises:
        OSError: a file cannot be written.
    """
    for name in sorted(files, key=lambda name: name == PAGE):
        write_atomically(folder / name, lambda file, name=name: file.write(files[name]))


def _section(run: TrainedRun, prefix: str, units: TrainedUnits | None) -> RunSection:
    curves = plot_training(run)
    tables = layer_tables(run)
    limits = axis_limits(table for table in tables.values() if isinstance(table, LayerTable))
    return RunSection(
        run=run,
        training=None
        if curves is None
        else Picture(
            f"training_{prefix}.png",
            to_png(curves),
            f"Loss and accuracy by epoch of run {run.title}.",
        ),
        layers=[_layers(name, table, limits, prefix) for name, table in tables.items()],
        units=None if units is None else _units(units, prefix),
    )


def _units(units: TrainedUnits, prefix: str) -> UnitSection:
    dead = units.dead()
    numbers = {layer.name: layer.dead for layer in dead or ()}
    return UnitSection(
        network=units.network,
        maps=[
            _maps(maps, numbers.get(maps.layer, ()), f"units_{prefix}_{i + 1}")
            for i, maps in enumerate(units.maps())
        ],
        dead=dead,
        data=units.data_name,
        images=0 if units.feed is None else len(units.feed.test),
        threshold=units.request.threshold,
    )


def _maps(maps: LayerMaps, dead: Sequence[int], name: str) -> Picture:
    return Picture(
        f"{name}_{_slug(maps.layer)}_{_slug(maps.file.stem)}.png",
        to_png(maps.plot(dead)),
        f"What layer {maps.layer} makes of {maps.file.name}: the whole layer (mean over its "
        "channels), and each unit with its number and kind, its channels next to each other, all "
        "units in one colour scale.",
    )


def _layers(
    name: str, table: LayerTable | str, limits: dict[str, float], prefix: str
) -> LayerSection:
    if isinstance(table, str):
        return LayerSection(name, None, None, table)
    bars = Picture(
        f"layers_{prefix}_{_slug(name)}.png",
        to_png(plot_layers(table, limits)),
        f"Parameters and FLOPs of each layer of {name}; the table below has the figures.",
    )
    return LayerSection(name, table, bars, None)


def _slug(text: str) -> str:
    """What is safe in a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "run"
