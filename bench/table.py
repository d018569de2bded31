"""``python bench/table.py RESULTS.json [PART ...]``: Markdown tables of a results file, one group a
row; all of them, or those of the parts named.

"Best of torch" is the fastest form that a PyTorch user would reach for, whichever that was:
grouped convolutions in either memory format, folded or not, compiled or not; ``bmm``, ``einsum``
and ``grouped_mm`` for linear units. Ratios tell how many times the time of ours others take.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

#: Which variant stands for ours, the first that was measured: what one gets by default.
OURS = ("auto", "cpp")

HEAD = "| layer | ours, ms | of floor | best of torch | loop |"
HEAD_MAPPED = " ours mapped, ms | of floor | best of torch | loop |"
HEAD_OTHERS = " other peers |"

TITLES = {
    "eval": "Inference, whole layer, batch norm folded",
    "level": "One level, forward",
    "level_grad": "One level, forward and backward",
    "train": "Training step of a layer, batch statistics",
}
PARTS = ("machine", *TITLES, "networks")


def load(path: str) -> dict:
    """A results file.

    Raises:
        SystemExit: there is no such file, or it is none; the message says what was expected.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"{path}: {error}; expected a file written by pytest bench/ --results FILE")
    if not isinstance(found, dict) or "groups" not in found:
        sys.exit(f"{path} has no groups; expected a file written by pytest bench/ --results FILE")
    return found


def ours(group: dict) -> str | None:
    return next((name for name in OURS if name in group["fresh"]), None)


def best(group: dict, family: str, where: str = "fresh") -> str | None:
    """The fastest variant of a family; ``where`` is ``"fresh"`` or ``"mapped"``."""
    times = group[where]
    names = [name for name in times if group["families"][name] == family]
    return min(names, key=lambda name: times[name]["median"], default=None)


def ratio(group: dict, family: str, where: str = "fresh") -> float | None:
    """Times that the best of ``family`` takes the time of ours."""
    name, mine = best(group, family, where), ours(group)
    if name is None or mine not in group[where]:
        return None
    return group[where][name]["median"] / group[where][mine]["median"]


def markdown(found: dict, parts: Sequence[str] = ()) -> list[str]:
    """The lines of the whole text: the machine, then a table for each direction and one of the
    networks; or the bare tables of ``parts`` (see :data:`PARTS`)."""
    if parts:
        return [line for part in parts for line in _part(found, part)]
    lines = _part(found, "machine")
    for part, title in (*TITLES.items(), ("networks", "Whole networks")):
        table = _part(found, part)
        if table:
            lines += ["", f"### {title}", "", *table]
    return lines


def _part(found: dict, part: str) -> list[str]:
    if part == "machine":
        return _machine(found)
    if part == "networks":
        return _networks(found["networks"]) if found.get("networks") else []
    groups = [g for g in found["groups"] if g["direction"] == part and ours(g)]
    return _table(groups) if groups else []


def _machine(found: dict) -> list[str]:
    computer, rates = found["machine"], found["rates"]
    lines = [
        f"{computer['cpu']}, {computer['threads']} threads, {computer['isa']}, torch "
        f"{computer['torch']}, float32; {rates['flops'] / 1e9:.0f} GFLOP/s "
        f"({rates['flops_by']}), copy {rates['bytes'] / 1e9:.1f} GB/s; commit {found['commit']}, "
        f"{found['date']}."
    ]
    if found["quick"]:
        lines.append("**Quick mode: these times mean nothing.**")
    return lines


def _networks(groups: list[dict]) -> list[str]:
    """A network and direction a row, each network in its faster memory format."""
    head = (
        "| network | FLOPs saved | ours, ms | dense, ms | ours takes | time conversion "
        "| by grouped convolutions | not fused | peak MB | dense |"
    )
    lines = [head, "|---" + "|---:" * (head.count("|") - 2) + "|"]
    for group in groups:
        fresh, fastest, flops = group["fresh"], group["fastest"], group["flops"]
        if None in fastest.values():
            continue
        ours, dense = (fresh[fastest[kind]] for kind in ("bunit", "dense"))
        grouped = [s["median"] for name, s in fresh.items() if "grouped" in name]
        unfused = [s["median"] for name, s in fresh.items() if "not fused" in name]
        lines.append(
            f"| {group['description']}, {group['direction']} "
            f"| {1 - flops['bunit'] / flops['dense']:.1%} "
            f"| {ours['median'] * 1e3:.3g} | {dense['median'] * 1e3:.3g} "
            f"| {ours['median'] / dense['median']:.2f} | {group['time_conversion']:.2f} "
            f"| {_times_as_long(grouped, ours)} | {_times_as_long(unfused, ours)} "
            f"| {_megabytes(ours)} | {_megabytes(dense)} |"
        )
    return lines


def _times_as_long(seconds: list[float], ours: dict) -> str:
    return f"{min(seconds) / ours['median']:.2f}x" if seconds else "-"


def _megabytes(summary: dict) -> str:
    peak = summary.get("peak_bytes")
    return "-" if peak is None else f"{peak / 1e6:.0f}"


def _table(groups: list[dict]) -> list[str]:
    mapped = any(group["mapped"] for group in groups)
    others = not mapped or groups[0]["direction"] == "train"
    head = HEAD + HEAD_MAPPED * mapped + HEAD_OTHERS * others
    lines = [head, "|---" + "|---:" * (head.count("|") - 2) + "|"]
    for group in groups:
        cells = [group["description"], *_times(group, "fresh")]
        cells += _times(group, "mapped") if mapped else []
        cells += [_others(group)] if others else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _times(group: dict, where: str) -> list[str]:
    """Our time, its share of the floor, the ratios to the best of torch and to the loop."""
    mine = group[where].get(ours(group))
    if mine is None:
        return ["-"] * 4
    library, name = ratio(group, "library", where), best(group, "library", where)
    loop = ratio(group, "loop", where)
    return [
        f"{mine['median'] * 1e3:.3g}",
        f"{group['floor'] / mine['median']:.0%}",
        f"{library:.2f}x ({name})" if library else "-",
        f"{loop:.1f}x" if loop else "-",
    ]


def _others(group: dict) -> str:
    """The remaining peers' ratios."""
    mine = group["fresh"][ours(group)]["median"]
    names = [name for name in group["fresh"] if group["families"][name] == "other"]
    return ", ".join(f"{name} {group['fresh'][name]['median'] / mine:.1f}x" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description="Markdown table of benchmark results.")
    parser.add_argument("results", help="file written by pytest bench/ --results FILE")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")
    print("\n".join(markdown(load(arguments.results), arguments.parts)))


if __name__ == "__main__":
    main()
