"""Accuracy against FLOPs or parameters: networks of the runs, and what is published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .figures import COLOURS, make_figure, tidy
from .published import PUBLISHED
from .result import (
    CIFAR10,
    IMAGENET,
    MOBILENET_V2,
    RESNET34,
    RESNET50,
    RESNET56,
    RESNET110,
    VGG16,
    Result,
)
from .runs import TrainedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The published networks that have a panel: data, network, the models whose runs stand beside them.
# The paper's "ResNet-20" has 8.52 M parameters: runs of the ResNet-20 of 0.27 M are not beside it.
_PANELS = (
    (CIFAR10, VGG16, ("bunit_vgg16", "bunit_vgg16_bn")),
    (CIFAR10, "ResNet-20", ("bunit_resnet20_256",)),
    (CIFAR10, MOBILENET_V2, ("bunit_mobilenet_v2",)),
    (CIFAR10, RESNET56, ("bunit_resnet56",)),
    (CIFAR10, RESNET110, ("bunit_resnet110",)),
    (IMAGENET, RESNET34, ()),
    (IMAGENET, RESNET50, ()),
)
_CIFAR10_CLASSES = {
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
}  # fmt: skip
_MARKERS, _RUN_MARKERS = "osv^DPX", "hp8H<>d"
_METHODS = list(dict.fromkeys(r.method for r in PUBLISHED if not r.is_bunit))
_TITLES = {"flops": "FLOPs", "parameters": "parameters"}
_COLUMNS = 2


def plot_tradeoff(runs: Sequence[TrainedRun], what: str) -> Figure:
    """A panel for each of the runs' data sets, a panel for each network with published results.

    The former have the networks' own ``what``; the latter have the share of the dense network's,
    since programs count FLOPs in more ways than one.

    Args:
        what: ``"flops"`` or ``"parameters"``.
    """
    shown = [run for run in runs if any(f["accuracy"] is not None for f in run.networks.values())]
    data = list(dict.fromkeys(run.data_key for run in shown))
    count = len(data) + len(_PANELS)
    rows = -(-count // _COLUMNS)
    figure = make_figure(9, 3.1 * rows + 2)
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    styles = _run_styles(shown)
    for axes, key in zip(panels, data, strict=False):
        same = [run for run in shown if run.data_key == key]
        _draw_runs(axes, same, what, styles)
        tidy(axes, f"runs on {same[0].data_name}, {key[1]:,} training images: accuracy, %")
    for axes, panel in zip(panels[len(data) :], _PANELS, strict=False):
        _draw_published(axes, panel, what, shown, styles)
    _add_legend(figure, panels[:count])
    return figure


def is_cifar10(run: TrainedRun) -> bool:
    """Whether a run's images are the whole of CIFAR-10, by their shape, number and classes."""
    data = run.report["data"]
    return (
        data["shape"] == [3, 32, 32]
        and set(data["classes"]) == _CIFAR10_CLASSES
        and (data["training_images"], data["test_images"]) == (50_000, 10_000)
    )


def _run_styles(runs: Sequence[TrainedRun]) -> dict[str, dict]:
    """One colour and marker a run; the same pair comes again after 49 runs."""
    colours, markers = len(COLOURS), len(_RUN_MARKERS)
    return {
        run.title: {
            "color": COLOURS[i % colours],
            "marker": _RUN_MARKERS[(i + i // colours) % markers],
            "markersize": 8,
        }
        for i, run in enumerate(runs)
    }


def _draw_runs(axes: Axes, runs: Sequence[TrainedRun], what: str, styles: dict) -> None:
    """Each run's networks, the compact one filled and the dense one hollow, joined by a line."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    for run in runs:
        points = {
            name: (figures[what], 100 * figures["accuracy"])
            for name, figures in run.networks.items()
            if figures["accuracy"] is not None
        }
        if not points:
            continue
        colour = styles[run.title]["color"]
        axes.plot(*zip(*points.values(), strict=True), color=colour, lw=0.8, alpha=0.6)
        for i, (name, point) in enumerate(points.items()):
            face = colour if i == 0 else "white"
            axes.plot(
                *point, linestyle="", markerfacecolor=face, label=f"{run.title}: {name}",
                **styles[run.title],
            )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    ends = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator() if ends[1] > 20 * ends[0] else MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{_TITLES[what]} of the network", fontsize=9)


def _draw_published(axes: Axes, panel: tuple, what: str, runs: Sequence, styles: dict) -> None:
    data, network, models = panel
    for result in PUBLISHED:
        saved = getattr(result, f"{what}_saved")
        if result.data == data and result.network == network and saved is not None:
            axes.plot(100 - saved, result.accuracy, label=result.method, **_style(result))
    for run in runs:
        comparison = run.comparison
        if comparison is None or data != CIFAR10 or not is_cifar10(run):
            continue
        if run.report["settings"]["model"] in models and comparison.accuracy is not None:
            kept = 100 * (1 - getattr(comparison, f"{what}_saving"))
            label = f"{run.title}: {next(iter(run.networks))}"
            axes.plot(
                kept, 100 * comparison.accuracy, linestyle="", label=label,
                **styles[run.title],
            )  # fmt: skip
    axes.margins(0.12)
    tidy(axes, f"published, {network} on {data}: accuracy, %")
    axes.set_xlabel(f"% of the dense network's {_TITLES[what]}", fontsize=9)


def _style(result: Result) -> dict:
    """Hollow markers, to be told from the runs'; the paper's a star, of strategy "r" a hollow one.
    One colour and marker a method."""
    if result.is_bunit:
        face = "black" if result.method == "BUnit-Net" else "none"
        star = {"color": "black", "marker": "*", "markersize": 13, "linestyle": ""}
        return star | {"markerfacecolor": face}
    i = _METHODS.index(result.method)
    colours = len(COLOURS)
    return {
        "color": COLOURS[i % colours],
        "marker": _MARKERS[(i + i // colours) % len(_MARKERS)],
        "markerfacecolor": "none",
        "markeredgewidth": 1.6,
        "linestyle": "",
    }


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, each label once."""
    entries = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(),
        loc="outside lower center", ncols=3, frameon=False, fontsize=8,
    )  # fmt: skip
