"""``python bench/plot.py RESULTS.json FIGURE OUT.png``: a figure of a results file.

Figures: ``ratios``, how many times as long the best of torch's forms and the loop take, by layer;
``widths``, milliseconds by width of unit; ``floor``, the share of the floor that ours reaches;
``networks``, time conversion by network. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys

from table import TITLES, best, load, ours, ratio

BLUE, ORANGE, GREY, GREEN = "#4878a8", "#d89a4a", "#9a9a9a", "#5a9a68"
DIRECTIONS = ("eval", "train")


def ratios(found: dict, plt) -> object:
    """Bars of the best of torch and of the loop, as multiples of ours, one panel a direction."""
    bars = (("library", "best of torch", BLUE), ("loop", "loop over units", ORANGE))

    def panel(axis, groups):
        for shift, (family, label, colour) in zip((-0.2, 0.2), bars, strict=True):
            values = [ratio(group, family) for group in groups]
            _bars(axis, values, shift, label, colour, left=1)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")

    figure, axes = _panels(found, plt, panel)
    axes[-1].set_xlabel("times the time of ours (logarithmic; 1: as fast)")
    return figure


def floor(found: dict, plt) -> object:
    """Bars of the share of the floor, with fresh and with mapped outputs."""

    def panel(axis, groups):
        for shift, where, colour in ((-0.2, "fresh", BLUE), (0.2, "mapped", GREEN)):
            values = [
                100 * group["floor"] / group[where][ours(group)]["median"]
                if ours(group) in group[where]
                else None
                for group in groups
            ]
            _bars(axis, values, shift, f"{where} outputs", colour)

    figure, axes = _panels(found, plt, panel)
    axes[-1].set_xlabel("share of the floor, % (100: the machine's limit)")
    return figure


def widths(found: dict, plt) -> object:
    """Lines over the width of uniform units, N=32, 28x28."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    lines = (
        ("ours", ours, BLUE),
        ("best of torch", lambda g: best(g, "library"), ORANGE),
        ("loop over units", lambda g: best(g, "loop"), GREY),
    )
    for axis, direction in zip(axes, DIRECTIONS, strict=True):
        groups = [
            g
            for g in found["groups"]
            if g["direction"] == direction
            and (g["workload"]["batch"], g["workload"]["size"]) == (32, 28)
            and ":" not in g["workload"]["units"]
        ]
        if not groups:
            sys.exit(f"nothing to plot: no {direction} group of N=32, 28x28")
        groups.sort(key=lambda g: int(g["workload"]["units"].split("-")[0]))
        x = [int(g["workload"]["units"].split("-")[0]) for g in groups]
        for label, name, colour in lines:
            y = [g["fresh"][name(g)]["median"] * 1e3 if name(g) else float("nan") for g in groups]
            axis.plot(x, y, "o-", color=colour, label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(x, [g["workload"]["units"] for g in groups], fontsize=8)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(plt.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(f"{TITLES[direction]}; N=32, 28x28", fontsize=9, loc="left")
        axis.set_ylabel("ms")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def networks(found: dict, plt) -> object:
    """Bars of the time conversion, by network and direction."""
    groups = [g for g in found.get("networks", ()) if g["time_conversion"] is not None]
    if not groups:
        sys.exit("nothing to plot: the file holds no networks")
    names = list(dict.fromkeys(g["description"] for g in groups))
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(names) + 1), layout="constrained")
    for shift, direction, colour in zip((-0.2, 0.2), DIRECTIONS, (BLUE, ORANGE), strict=True):
        values = {g["description"]: g for g in groups if g["direction"] == direction}
        values = [values[n]["time_conversion"] if n in values else None for n in names]
        label = {"eval": "inference", "train": "training step"}[direction]
        _bars(axis, values, shift, label, colour)
    _finish(axis, names, "")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_xlabel("time conversion: share of the FLOPs saved that became time saved")
    axis.legend(loc="lower right", frameon=False)
    return figure


FIGURES = {"ratios": ratios, "widths": widths, "floor": floor, "networks": networks}


def _panels(found: dict, plt, panel):
    """A panel a direction, a row a layer; ``panel(axis, groups)`` draws the bars."""
    shown = {d: [g for g in found["groups"] if g["direction"] == d and ours(g)] for d in DIRECTIONS}
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
    axes = axes[:, 0]
    for axis, (direction, groups) in zip(axes, shown.items(), strict=True):
        panel(axis, groups)
        _finish(axis, [group["description"] for group in groups], TITLES[direction])
    axes[0].legend(loc="lower right", frameon=False)
    return figure, axes


def _bars(axis, values: list, shift: float, label: str, colour: str, left: float = 0) -> None:
    """Horizontal bars from ``left`` to each value, the value beside each; ``None`` has none."""
    for i, value in enumerate(values):
        if value is None:
            continue
        axis.barh(i + shift, value - left, 0.38, left=left, color=colour, label=label)
        label = None  # once in the legend
        axis.annotate(
            f"{value:.3g}", (max(value, left), i + shift), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    axis.axvline(left, color="black", linewidth=0.8)


def _finish(axis, names: list[str], title: str) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10, loc="left")
    axis.margins(x=0.08)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures of benchmark results.")
    parser.add_argument("results", help="file written by pytest bench/ --results FILE")
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("out", help="image to write, such as speed.png")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = load(arguments.results)
    figure = FIGURES[arguments.figure](found, plt)
    computer = found["machine"]
    figure.suptitle(
        f"{computer['cpu']}, {computer['threads']} threads, torch {computer['torch']}", fontsize=10
    )
    figure.savefig(arguments.out, dpi=140)


if __name__ == "__main__":
    main()
