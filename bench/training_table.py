"""``python bench/training_table.py METRICS.json|FOLDER ...``: a Markdown table of training runs.

The files (all of a folder's) are the ``metrics.json`` of runs of ``python -m bunit_kernels.train``,
under whatever names. Runs that differ in their seed alone make one row: means, and from two seeds
on the sample standard deviations. Times are not in it: those of a training step are measured by
``pytest bench/``, with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from bunit_kernels.train.report import comparison, comparison_dict

#: What may differ between the runs of one row.
FREE = ("seed", "threads", "workers", "save_every", "tensorboard")

HEAD = (
    "| network | data | epochs | seeds | accuracy | dense | difference, points | parameters saved "
    "| FLOPs saved | speedup by FLOPs | TCA (1, 1), (1, 4), (4, 1) | TSA (1, 1), (1, 4), (4, 1) |"
)


def load(path: Path) -> dict:
    """A metrics file of a finished run of two networks, what they save computed anew: files of
    earlier versions have other scores.

    Raises:
        SystemExit: it is none; the message says what was expected.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"{path}: {error}; expected the metrics.json of a training run")
    if not isinstance(found, dict) or "comparison" not in found:
        sys.exit(f"{path} is not of a finished run of a network and its dense counterpart")
    found["comparison"] = comparison_dict(comparison(found, list(found["networks"])))
    return found


def load_all(paths: list[Path]) -> list[list[dict]]:
    """The runs of these files and of all files of these folders, those of one recipe together.

    Raises:
        SystemExit: there is none, or one is no finished run.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else path.glob("*.json"))]
    if not files:
        sys.exit(f"no metrics files in {', '.join(map(str, paths))}")
    recipes: dict[str, list[dict]] = {}
    for run in map(load, sorted(files)):
        settings = {k: v for k, v in run["settings"].items() if k not in FREE}
        recipes.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return sorted(recipes.values(), key=_size)


def _size(runs: list[dict]) -> tuple:
    return runs[0]["data"]["shape"], runs[0]["comparison"]["dense_flops"]


def markdown(recipes: list[list[dict]]) -> list[str]:
    """The lines of the table, a row a recipe."""
    lines = [HEAD, "|---|---" + "|---:" * (HEAD.count("|") - 3) + "|"]
    return lines + [_row(runs) for runs in recipes]


def _row(runs: list[dict]) -> str:
    settings, data = runs[0]["settings"], runs[0]["data"]
    compared = [run["comparison"] for run in runs]

    def mean(key):
        return statistics.mean(c[key] for c in compared)

    def accuracy(key):
        values = [100 * c[key] for c in compared]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}%{spread}"

    cells = [
        f"`{settings['model']}`",
        Path(data["name"]).stem,
        str(settings["epochs"]),
        str(len(runs)),
        accuracy("accuracy"),
        accuracy("dense_accuracy"),
        f"{100 * mean('accuracy_difference'):+.2f}",
        f"{mean('parameters_saving'):.2%}",
        f"{mean('flops_saving'):.2%}",
        f"{mean('speedup'):.2f}x",
        _scores(compared, "tca"),
        _scores(compared, "tsa"),
    ]
    return "| " + " | ".join(cells) + " |"


def _scores(compared: list[dict], name: str) -> str:
    """Means of a score, by pair of weights."""
    by_weights = zip(*(comparison["scores"] for comparison in compared), strict=True)
    return ", ".join(f"{statistics.mean(s[name] for s in scores):.2f}" for scores in by_weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Markdown table of training runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="METRICS.json|FOLDER")
    print("\n".join(markdown(load_all(parser.parse_args().runs))))


if __name__ == "__main__":
    main()
