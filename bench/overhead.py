"""``python bench/overhead.py``: microseconds a call where the arithmetic is next to nothing.

Small networks have many small layers, so what a call costs before any kernel runs counts. Inputs
are one image of 4x4 (or one row) and two units; medians of interleaved rounds (see
:mod:`harness`), inference mode for forward, ``torch.autograd.grad`` for forward and backward.
"""

from __future__ import annotations

import argparse

import torch
from harness import build, measure, quiet_warnings
from peers import PEERS
from workloads import Workload, make_case

CONV = Workload("conv", "2-4-2", 2, 1, 4)
LINEAR = Workload("linear", "2-4-2", 2, 1)

#: (what, direction).
ROWS = (
    ("one level, forward", "level"),
    ("whole unit, forward", "eval"),
    ("one level, forward + backward", "level_grad"),
    ("whole unit, forward + backward", "train"),
)
#: Variants of each workload, by their names in :mod:`peers`.
VARIANTS = {
    CONV: ("cpp", "auto", "cpp module", "grouped", "grouped folded", "loop"),
    LINEAR: ("cpp", "auto", "bmm", "loop"),
}


def rows(budget: float):
    """(what, {variant: microseconds}, {variant: why not})."""
    for workload, names in VARIANTS.items():
        for what, direction in ROWS:
            case = make_case(workload, direction)
            takes = [n for n in names if PEERS[n].takes(workload, direction, ("quick",))]
            built = build(case, takes)
            samples = measure(built.variants, budget)
            times = {name: s.summary()["median"] * 1e6 for name, s in samples.items()}
            yield f"{workload.name}, {what}", times, built.skipped | built.failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Microseconds a call for tiny inputs.")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a row")
    parser.add_argument("--threads", type=int, help="threads of torch (default: all)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quiet_warnings()
    print(f"microseconds a call, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for what, times, missing in rows(arguments.budget):
        print(f"\n{what}")
        for name, microseconds in sorted(times.items(), key=lambda item: item[1]):
            print(f"  {name:16}{microseconds:>9.1f}")
        for name, reason in missing.items():
            print(f"  {name:16} skipped: {reason}")


if __name__ == "__main__":
    main()
