"""``python bench/plot.py RESULTS.json OUT.png [DIRECTION ...]``: how many times faster ours is than
the best of torch's forms and than the loop, by workload, one panel a direction (all unless some are
named). Needs matplotlib."""

from __future__ import annotations

import argparse
import sys

from table import TITLES, load, ours, ratio

BARS = (("library", "best of torch", "#4878a8"), ("loop", "loop over units", "#d89a4a"))


def plot(found: dict, path: str, directions: list[str]) -> None:
    """Writes the figure; the suffix of ``path`` names the format."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {d: [g for g in found["groups"] if g["direction"] == d and ours(g)] for d in directions}
    shown = {direction: groups for direction, groups in shown.items() if groups}
    if not shown:
        sys.exit("nothing to plot: no group has a time of ours")
    rows = sum(len(groups) for groups in shown.values())
    figure, axes = plt.subplots(
        len(shown),
        figsize=(9, 0.32 * rows + 1.0 * len(shown) + 0.6),
        height_ratios=[len(groups) + 1 for groups in shown.values()],
        squeeze=False,
        layout="constrained",
    )
    for axis, (direction, groups) in zip(axes[:, 0], shown.items(), strict=True):
        _panel(axis, groups, TITLES[direction])
    axes[0, 0].legend(loc="lower right", frameon=False)
    axes[-1, 0].set_xlabel("times the time of ours (logarithmic; 1: as fast)")
    computer = found["machine"]
    figure.suptitle(
        f"{computer['cpu']}, {computer['threads']} threads, torch {computer['torch']}", fontsize=10
    )
    figure.savefig(path, dpi=140)


def _panel(axis, groups: list[dict], title: str) -> None:
    for shift, (family, label, colour) in zip((-0.2, 0.2), BARS, strict=True):
        for i, group in enumerate(groups):
            value = ratio(group, family)
            if value is None:
                continue
            axis.barh(
                i + shift, value - 1, 0.38, left=1, color=colour, label=label if i == 0 else None
            )
            axis.annotate(
                f"{value:.3g}", (max(value, 1), i + shift), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(groups)), [group["description"] for group in groups], fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10, loc="left")
    axis.margins(x=0.08)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bar charts of benchmark results.")
    parser.add_argument("results", help="file written by pytest bench/ --results FILE")
    parser.add_argument("out", help="image to write, such as speed.png")
    parser.add_argument("directions", nargs="*", metavar="DIRECTION", help=", ".join(TITLES))
    arguments = parser.parse_args()
    plot(load(arguments.results), arguments.out, arguments.directions or list(TITLES))


if __name__ == "__main__":
    main()
