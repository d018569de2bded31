"""The paper's small experiments by the training program: ``python bench/reproduce.py TABLE``.

    python bench/reproduce.py I --data mnist.npz [--minutes 60] [--threads 1] [--share 0/2]
    python bench/reproduce.py I --table

Trains the networks of a table (I, II or III of Lan et al. 2024), each with several seeds, one after
another by ``python -m bunit_kernels.train``, whose command it prints. What a run leaves in
bench/results/paper is its settings and its figures by epoch, and a run that is there is not trained
again; one that was stopped goes on. ``--share 1/2`` takes every second run, for two processes side
by side. ``--table`` prints the results beside the paper's, which are of its own data, machine and
number of epochs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bunit_kernels.models.lenet import LENET_UNITS
from bunit_kernels.report.published import PAPER, SMALL_NETWORKS
from bunit_kernels.units import PAPER_POOL

RESULTS = Path(__file__).resolve().parent / "results" / "paper"


@dataclass(frozen=True)
class Network:
    """A row of a table: its name there, the accuracies printed, and what the program is to train.

    ``of_dense`` is for the dense counterpart, which is trained beside it.
    """

    name: str
    printed: str
    options: tuple[str, ...]
    of_dense: str | None = None


@dataclass(frozen=True)
class Table:
    networks: tuple[Network, ...]
    seeds: int
    options: tuple[str, ...]  # of all runs


def tables() -> dict[str, Table]:
    light = {n.name.split()[0]: n for n in SMALL_NETWORKS if n.table == "I"}
    toys = [n for n in SMALL_NETWORKS if n.table == "II"]
    mlp = next(r for r in PAPER if r.table == "III" and r.method.startswith("BUnit-Net"))
    return {
        "I": Table(
            tuple(
                Network(
                    units, f"{light[units].accuracy:.2f} ± {light[units].accuracy_std:.2f}",
                    ("--model", "bunit_lenet", "--model-arg", f"units={units}", "--no-dense"),
                )
                for units in LENET_UNITS
            ),
            5,
            ("--recipe", "paper-mnist", "--epochs", "20", "--warmup-epochs", "1"),
        ),
        "II": Table(
            tuple(
                Network(n.name, f"{n.accuracy:.2f}", (*_toy(n.stacked), "--no-dense"))
                for n in toys
            ),
            1,
            ("--recipe", "paper-exploration", "--epochs", "15", "--warmup-epochs", "1"),
        ),
        "III": Table(
            (
                Network(
                    "bunit_mlp", f"{mlp.accuracy:.2f}", ("--model", "bunit_mlp"),
                    f"{mlp.baseline:.2f}",
                ),
            ),
            5,
            ("--recipe", "paper-mnist", "--epochs", "60", "--warmup-epochs", "1"),
        ),
    }  # fmt: skip


def _toy(stacked: tuple[tuple[int, ...], ...]) -> tuple[str, ...]:
    pool = tuple(map(str, PAPER_POOL))
    counts = [dict(zip(pool, layer, strict=True)) for layer in stacked]
    return (
        "--model",
        "bunit_cnn",
        "--model-arg",
        f"counts={counts}",
    )


def command(table: Table, network: Network, seed: int) -> list[str]:
    """The training program's arguments, but for data, machine and folder."""
    return [*network.options, *table.options, "--seed", str(seed)]


def result_file(name: str, network: Network, seed: int) -> Path:
    return RESULTS / f"table{name}-{network.name.replace('.', '')}-{seed}.json"


def train(name: str, data: str, minutes: float, threads: int, share: tuple[int, int]) -> None:
    table, end = tables()[name], time.monotonic() + 60 * minutes
    runs = [(n, seed) for seed in range(table.seeds) for n in table.networks]
    for network, seed in runs[share[0] :: share[1]]:
        to = result_file(name, network, seed)
        left = (end - time.monotonic()) / 60
        if to.exists() or left <= 0:
            continue
        folder = Path("runs") / to.stem
        if folder.exists():
            arguments = ["--resume", str(folder)]
        else:
            arguments = command(table, network, seed)
            arguments += ["--data", data, "--threads", str(threads), "--out", str(folder)]
        shown = ["python", "-m", "bunit_kernels.train", *arguments]
        print(shlex.join(shown), flush=True)
        started = [sys.executable, *shown[1:], "--quiet", "--max-minutes", f"{left:.2f}"]
        code = subprocess.run(started).returncode
        if code == 3:
            return
        if code != 0:
            raise SystemExit(code)
        found = json.loads((folder / "metrics.json").read_text())
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(least(found), indent=1) + "\n")


def least(metrics: dict) -> dict:
    """What a table, or another look at a run, needs."""
    networks = {
        name: {
            "parameters": network["parameters"],
            "flops": network["flops"],
            "test_accuracy": [round(e["test_accuracy"], 6) for e in network["history"]],
            "train_loss": [round(e["train_loss"], 5) for e in network["history"]],
        }
        for name, network in metrics["networks"].items()
    }
    kept = ("settings", "versions", "backend")
    return {key: metrics[key] for key in kept} | {"networks": networks}


def markdown(name: str) -> str:
    table = tables()[name]
    lines = [
        "| network | thousand parameters | seeds | epochs | accuracy, % | printed, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for network in table.networks:
        files = [result_file(name, network, seed) for seed in range(table.seeds)]
        runs = [json.loads(file.read_text()) for file in files if file.exists()]
        if not runs:
            lines.append(f"| {network.name} | | 0 | | not trained | {network.printed} |")
            continue
        for which, printed in zip(
            runs[0]["networks"], (network.printed, network.of_dense), strict=False
        ):
            lines.append(_row(which if len(runs[0]["networks"]) > 1 else network.name,
                              [run["networks"][which] for run in runs], printed))  # fmt: skip
    return "\n".join(lines)


def _row(name: str, networks: list[dict], printed: str) -> str:
    last = [100 * network["test_accuracy"][-1] for network in networks]
    spread = f" ± {statistics.stdev(last):.2f}" if len(last) > 1 else ""
    cells = [
        name, f"{networks[0]['parameters'] / 1e3:.2f}", str(len(last)),
        str(len(networks[0]["test_accuracy"])), f"{statistics.mean(last):.2f}{spread}", printed,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _share(text: str) -> tuple[int, int]:
    which, _, of = text.partition("/")
    if not (which.isdigit() and of.isdigit() and int(which) < int(of)):
        raise argparse.ArgumentTypeError(f"expected WHICH/OF, such as 0/2, got {text!r}")
    return int(which), int(of)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the networks of a table of the paper.")
    parser.add_argument("name", choices=list(tables()), metavar="TABLE", help="I, II or III")
    parser.add_argument("--table", action="store_true", help="print what is there; train nothing")
    parser.add_argument("--data", help="mnist.npz, or a folder of CIFAR-10")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=_share, default=(0, 1), metavar="WHICH/OF")
    options = parser.parse_args()
    if options.table:
        print(markdown(options.name))
    elif options.data is None:
        parser.error("training needs --data")
    else:
        train(options.name, options.data, options.minutes, options.threads, options.share)


if __name__ == "__main__":
    main()
