"""``python bench/gpu/report.py FILE.json``: a run's results as Markdown tables.

"Best of torch" is the fastest form that a PyTorch user would reach for; ratios tell how many times
the time of ours others take. Times are device times (see timing.py); "call" is what a user waits
for, launch overhead and warm caches included.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

HEAD = (
    "| layer | dtype | ours, us | of floor | best of torch | loop | call, us | best of torch "
    "| peak MB | best of torch |"
)
TITLES = {
    "eval": "Inference, whole layer, batch norm folded",
    "train": "Training step of a layer, batch statistics",
    "level": "One level, forward",
    "level_grad": "One level, forward and backward",
}


def best(group: dict, family: str, kind: str = "device") -> str | None:
    """The fastest variant of a family."""
    names = [name for name in group["times"] if group["families"][name] == family]
    return min(names, key=lambda n: group["times"][n][kind]["median"], default=None)


def median(group: dict, name: str | None, kind: str = "device") -> float | None:
    return None if name is None else group["times"][name][kind]["median"]


def markdown(found: dict) -> list[str]:
    device, rates = found["device"], found.get("rates") or {}
    lines = [
        f"{device['gpu']}, driver {device['driver']}, torch {device['torch']}, cuDNN "
        f"{device['cudnn']}, nvcc {device['nvcc']}; commit {found['commit']}, {found['date']}.",
        "Measured: " + ", ".join(_rate(name, rate) for name, rate in rates.items()) + ".",
        "",
    ]
    for step in ("build", "tests", "memcheck", "racecheck"):
        if step in found:
            lines.append(f"- {step}: {found[step]['result']} ({found[step]['seconds']:.0f} s)")
    groups = [g for g in found["groups"] if not g["workload"].startswith("pool_")]
    for direction, title in TITLES.items():
        rows = [_row(g) for g in groups if g["direction"] == direction]
        if rows:
            lines += ["", f"### {title}", "", HEAD, "|---" * 2 + "|---:" * 8 + "|", *rows]
    hybrid = hybrid_ratio(found["groups"])
    if hybrid:
        lines += ["", f"Hybrid layer against uniform layers of the same FLOPs and bytes: {hybrid}"]
    wrong = [(g, n, why) for g in found["groups"] for n, why in g["failed"].items()]
    lines += ["", "### Failed", ""] if wrong else []
    lines += [f"- {g['workload']} {g['direction']} {g['dtype']}, {n}: {w}" for g, n, w in wrong]
    return lines


def hybrid_ratio(groups: list[dict]) -> str | None:
    """Time of the hybrid layer over the time of uniform ones, weighted as its units are."""
    from workloads import WORKLOADS

    pool = {g["workload"].removeprefix("pool_"): g for g in groups if "pool_" in g["workload"]}
    hybrid = next(
        (
            g
            for g in groups
            if g["workload"].startswith("hybrid")
            and (g["direction"], g["dtype"]) == ("eval", "bfloat16")
        ),
        None,
    )
    if hybrid is None or best(hybrid, "ours") is None:
        return None
    workload = next(w for w in WORKLOADS if w.name == hybrid["workload"])
    counts = Counter(map(str, workload.make_layer().units))
    if any(units not in pool or best(pool[units], "ours") is None for units in counts):
        return None
    uniform = sum(
        count / workload.num_units * median(pool[units], best(pool[units], "ours"))
        for units, count in counts.items()
    )
    return f"{median(hybrid, best(hybrid, 'ours')) / uniform:.2f} times their time"


def _row(group: dict) -> str:
    ours, library = best(group, "ours"), best(group, "library")
    mine, theirs = median(group, ours), median(group, library)
    loop = median(group, best(group, "loop"))
    call = median(group, best(group, "ours", "call"), "call")
    their_call = median(group, best(group, "library", "call"), "call")
    floors = ", ".join(f"{t / mine:.0%} {u}" for u, t in group["floors"].items()) if mine else ""
    cells = [
        group["description"],
        group["dtype"],
        f"{mine * 1e6:.3g} ({ours})" if mine else "-",
        floors or "-",
        f"{theirs / mine:.2f}x ({library})" if mine and theirs else "-",
        f"{loop / mine:.0f}x" if mine and loop else "-",
        f"{call * 1e6:.3g}" if call else "-",
        f"{their_call / call:.2f}x" if call and their_call else "-",
        f"{group['times'][ours]['peak_bytes'] / 1e6:.1f}" if ours else "-",
        f"{group['times'][library]['peak_bytes'] / 1e6:.1f}" if library else "-",
    ]
    return "| " + " | ".join(cells) + " |"


def _rate(name: str, rate: float) -> str:
    return f"{name} {rate / 1e12:.3g} {'TB/s' if name == 'copy' else 'TFLOP/s'}"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    print("\n".join(markdown(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()
