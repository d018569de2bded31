"""Loss and accuracy of a run's networks by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .figures import COLOURS, make_figure, tidy
from .runs import TrainedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training(run: TrainedRun) -> Figure | None:
    """Two panels, loss and accuracy; ``None`` before the first epoch has ended."""
    shown = {name: f["history"] for name, f in run.networks.items() if f["history"]}
    if not shown:
        return None
    figure = make_figure(9, 3.6)
    panels = figure.subplots(1, 2)
    for axes, what, factor in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
        for (name, history), colour in zip(shown.items(), COLOURS, strict=False):
            epochs = [epoch["epoch"] for epoch in history]
            marker = "." if len(epochs) < 20 else None
            for images, style in (("train", "--"), ("test", "-")):
                values = [factor * epoch[f"{images}_{what}"] for epoch in history]
                label = f"{name}, {'training' if images == 'train' else 'test'} images"
                axes.plot(epochs, values, style, color=colour, marker=marker, label=label, lw=1.3)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
    tidy(panels[0], "cross entropy")
    tidy(panels[1], "accuracy, %")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
