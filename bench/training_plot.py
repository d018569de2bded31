"""``python bench/training_plot.py METRICS.json|FOLDER ... OUT.png``: accuracy by epoch.

A panel a recipe, as the rows of training_table.py: accuracy on the test images of each seed's run,
the BUnit network's and its dense counterpart's. Needs matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from plot import BLUE, ORANGE
from training_table import load_all

PANELS = 4  # side by side, at most


def curves(recipes: list[list[dict]], plt) -> object:
    """The figure; ``recipes`` as ``load_all`` gives them."""
    columns = min(PANELS, len(recipes))
    rows = -(-len(recipes) // columns)
    size = (2.8 * columns, 2.7 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(recipes) :]:
        axis.remove()
    for axis, runs in zip(axes.flat, recipes, strict=False):
        for run in runs:
            for (name, network), colour in zip(
                run["networks"].items(), (BLUE, ORANGE), strict=True
            ):
                accuracy = [100 * epoch["test_accuracy"] for epoch in network["history"]]
                label = name if run is runs[0] else None
                epochs = range(1, len(accuracy) + 1)
                axis.plot(epochs, accuracy, ".-", color=colour, label=label, lw=1, ms=3)
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        axis.set_title(f"{Path(runs[0]['data']['name']).stem}{seeds}", fontsize=9, loc="left")
        axis.set_xlabel("epoch", fontsize=8)
        axis.set_ylabel("test accuracy, %", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower right", frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy by epoch of training runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="METRICS.json|FOLDER")
    parser.add_argument("out", type=Path, help="image to write, such as curves.png")
    arguments = parser.parse_args()
    recipes = load_all(arguments.runs)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves(recipes, plt).savefig(arguments.out, dpi=140)


if __name__ == "__main__":
    main()
