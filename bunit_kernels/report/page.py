"""The page of a report."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .. import __version__
from ..metrics import WEIGHTS, Comparison, LayerTable
from .published import (
    LIGHT_NETWORKS,
    PUBLISHED,
    SMALL_NETWORKS,
    TIMES,
    InferenceTime,
    LightNetwork,
    SmallNetwork,
)
from .result import Result, Source
from .runs import TrainedRun
from .units_seen import LayerUnits

_TEMPLATE = "page.html"
_SCORE_TITLES = [f"{name} ({w1:g}, {w2:g})" for w1, w2 in WEIGHTS for name in ("TCA", "TSA")]


@dataclass(frozen=True)
class Picture:
    """A plot: its file's name and content, and what it shows in words."""

    file: str
    content: bytes
    text: str

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.content).decode()


@dataclass(frozen=True)
class LayerSection:
    """The layers of a network with their bars, or why they are not known."""

    name: str
    table: LayerTable | None
    bars: Picture | None
    missing: str | None


@dataclass(frozen=True)
class UnitSection:
    """The units of a network at work: a picture an image, and where asked for the dead units of
    each layer, with the name of the data and the number of images that they were looked for on."""

    network: str
    maps: list[Picture]
    dead: list[LayerUnits] | None
    data: str
    images: int
    threshold: float


@dataclass(frozen=True)
class RunSection:
    """What the page shows of a run; ``training`` is ``None`` before the first epoch has ended,
    ``units`` where they were not asked for."""

    run: TrainedRun
    training: Picture | None
    layers: list[LayerSection]
    units: UnitSection | None = None

    @property
    def pictures(self) -> list[Picture]:
        bars = [layer.bars for layer in self.layers]
        maps = [] if self.units is None else self.units.maps
        return [picture for picture in (self.training, *maps, *bars) if picture is not None]


def render_page(sections: Sequence[RunSection], tradeoffs: Sequence[Picture]) -> str:
    """The page as HTML, with every plot within."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = [section.run for section in sections]
    sources = list(dict.fromkeys(result.source for result in PUBLISHED))
    return environment.get_template(_TEMPLATE).render(
        version=__version__,
        sections=sections,
        tradeoffs=tradeoffs,
        networks=[row for run in runs for row in _network_rows(run)],
        scores=[_score_row(run) for run in runs if run.comparison and run.comparison.scores],
        score_titles=_SCORE_TITLES,
        machines=[_machine_row(run) for run in runs],
        published=[_published_row(result, sources) for result in PUBLISHED],
        small_networks=[_small_network_row(network) for network in SMALL_NETWORKS],
        light_networks=[_light_network_row(network) for network in LIGHT_NETWORKS],
        times=[_time_row(time) for time in TIMES],
        sources=sources,
        layer_rows=_layer_rows,
        unit_rows=_unit_rows,
    )


def _network_rows(run: TrainedRun) -> list[list[str]]:
    data, asked = run.report["data"], run.report["settings"]["epochs"]
    images = f"{data['training_images']:,} + {data['test_images']:,}"
    rows = []
    for i, (name, figures) in enumerate(run.networks.items()):
        rows.append(
            [
                run.title,
                name,
                f"{run.data_name}, {'x'.join(map(str, data['shape']))}, {images}",
                f"{len(figures['history'])} of {asked}",
                _percent(figures["accuracy"]),
                _percent(figures["best_accuracy"]),
                f"{figures['parameters']:,}",
                f"{figures['flops']:,}",
                _milliseconds(figures.get("training_step_seconds")),
                _milliseconds(figures.get("inference_seconds")),
                *_savings(run.comparison if i == 0 else None),
            ]
        )
    return rows


def _savings(comparison: Comparison | None) -> list[str]:
    """The compact network's against the dense one."""
    if comparison is None:
        return [""] * 5
    step, inference = comparison.training_step, comparison.inference
    return [
        _percent(comparison.parameters_saving),
        _percent(comparison.flops_saving),
        _percent(None if step is None else step.saving),
        _percent(None if inference is None else inference.saving),
        "" if comparison.time_conversion is None else f"{comparison.time_conversion:.3f}",
    ]


def _score_row(run: TrainedRun) -> list[str]:
    comparison = run.comparison
    return [
        run.title,
        next(iter(run.networks)),
        f"{100 * comparison.dense_accuracy:.2f}",
        f"{100 * comparison.accuracy:.2f}",
        "" if comparison.speedup is None else f"{comparison.speedup:.2f}",
        *(f"{v:.2f}" for score in comparison.scores for v in (score.tca, score.tsa)),
    ]


def _machine_row(run: TrainedRun) -> list[str]:
    versions, settings = run.report["versions"], run.report["settings"]
    return [
        run.title,
        versions["device"],
        str(versions.get("threads", "")),
        versions["platform"],
        versions["torch"],
        run.report["backend"],
        versions["bunit_kernels"],
        str(settings["batch_size"]),
    ]


def _layer_rows(table: LayerTable) -> list[list[str]]:
    rows = [
        [
            row.name,
            row.kind,
            str(row.calls),
            "x".join(map(str, row.output or ())),
            *_layer_figures(row),
        ]
        for row in table.rows
    ]
    return [*rows, ["total", "", "", "", *_layer_figures(table)]]


def _unit_rows(layers: Sequence[LayerUnits]) -> list[list[str]]:
    return [
        [
            layer.name,
            str(len(layer.units)),
            str(len(layer.dead)),
            *(f"{value:.3g}" for value in (min(layer.variances), median(layer.variances))),
        ]
        for layer in layers
    ]


def _layer_figures(of) -> list[str]:
    return [f"{value:,}" for value in (of.parameters, of.flops, of.bytes)]


def _published_row(result: Result, sources: list[Source]) -> list[str]:
    scores = [_printed(value) for score in result.scores for value in (score.tca, score.tsa)]
    return [
        result.data,
        result.network,
        result.method,
        "" if result.year is None else str(result.year),
        *map(_printed, (result.accuracy, result.baseline)),
        *("" if v is None else f"{v:g}" for v in (result.flops_saved, result.parameters_saved)),
        _printed(result.speedup),
        *(scores or [""] * len(_SCORE_TITLES)),
        f"[{sources.index(result.source) + 1}]" + (f", {result.table}" if result.table else ""),
    ]


def _small_network_row(network: SmallNetwork) -> list[str]:
    return [
        network.table,
        network.name,
        network.describe_units(),
        _printed(network.accuracy),
        _printed(network.accuracy_std),
        network.mflops,
        network.thousand_parameters,
    ]


def _light_network_row(network: LightNetwork) -> list[str]:
    figures = network.accuracy, network.flops, network.parameters
    return [network.data, network.network, network.method, *map(_printed, figures)]


def _time_row(time: InferenceTime) -> list[str]:
    return [
        time.network, time.device, f"{time.dense_ms:g}", f"{time.ms:g}", _printed(time.speedup)
    ]  # fmt: skip


def _printed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}"
