"""One group: a workload in one direction, measured once for all its variants, and its table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from harness import Samples, build, measure, measure_memory, worth_more
from mapped import MappedProcess
from peers import PEERS, peers_for
from table import ours as ours_in
from workloads import DIRECTIONS, WORKLOADS, Case, Workload, make_case

#: Directions that are measured into mapped memory too: whole layers, as users run them.
MAPPED = ("eval", "train")

#: Share of the budget that a direction's rounds may take; ``mapped`` comes on top of those above.
SHARES = {"eval": 1.0, "mapped": 0.7, "level": 0.6, "level_grad": 0.6, "train": 0.8}


@dataclass
class Group:
    """What was found out about one workload in one direction."""

    case_of: Workload
    direction: str
    flops: int = 0
    bytes: int = 0
    samples: dict[str, Samples] = field(default_factory=dict)
    mapped: dict[str, dict] = field(default_factory=dict)
    mapped_error: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def floor(self, rates: dict) -> float:
        """Seconds that the work takes at least, at the machine's rates."""
        return max(self.flops / rates["flops"], self.bytes / rates["bytes"])

    def as_dict(self, rates: dict) -> dict:
        """For a results file."""
        names = [*self.samples, *self.skipped, *self.failed]
        return {
            "workload": asdict(self.case_of),
            "description": self.case_of.describe(),
            "direction": self.direction,
            "flops": self.flops,
            "bytes": self.bytes,
            "floor": self.floor(rates),
            "families": {name: PEERS[name].family for name in names},
            "fresh": {name: s.summary() for name, s in self.samples.items()},
            "mapped": self.mapped,
            "mapped_error": self.mapped_error,
            "skipped": self.skipped,
            "failed": self.failed,
        }


def all_variants(effort: str) -> list[tuple[str, str, str]]:
    """(workload, direction, variant), every group's together."""
    return [
        (workload.name, direction, name)
        for workload in WORKLOADS
        for direction in DIRECTIONS
        for name in peers_for(workload, direction, effort)
    ]


def run_group(
    workload: Workload, direction: str, names: list[str], budget: float, min_rounds: int,
    child: MappedProcess, device: str = "cpu",
) -> Group:  # fmt: skip
    """Builds, checks and times the variants ``names``; then, for whole layers, takes the mapped
    times of those that are not hopelessly slow."""
    case: Case = make_case(workload, direction, device)
    group = Group(workload, direction, case.flops(), case.bytes())
    built = build(case, names)
    group.skipped, group.failed = built.skipped, built.failed
    group.samples = measure(built.variants, budget * SHARES[direction], min_rounds, device)
    measure_memory(group.samples, built.variants, device)
    names = worth_more(group.samples, built.variants)
    del case, built
    if direction in MAPPED and device == "cpu" and names:
        answer = child.measure(
            workload=asdict(workload), direction=direction, names=names, min_rounds=min_rounds,
            budget=budget * SHARES["mapped"], threads=torch.get_num_threads(),
        )  # fmt: skip
        group.mapped, group.mapped_error = answer.get("summaries", {}), answer.get("error")
    return group


def group_table(group: dict) -> list[str]:
    """A group of a results file as lines of text: one variant a line, the fastest first."""
    fresh, mapped = group["fresh"], group["mapped"]
    lines = [
        f"{group['description']}: {group['direction']}   ({group['flops'] / 1e9:.3g} GFLOP, "
        f"{group['bytes'] / 1e6:.3g} MB, floor {group['floor'] * 1e3:.3g} ms)"
    ]
    ours = ours_in(group)
    head = f"  {'':34}{'ms':>10}{'quartiles':>19}{'x ours':>8}{'GFLOP/s':>9}{'floor':>7}"
    head += f"{'peak MB':>9}"
    lines.append(head + (f"{'mapped ms':>12}{'x ours':>8}{'floor':>7}" if mapped else ""))
    for name in sorted(fresh, key=lambda name: fresh[name]["median"]):
        lines.append(_row(name, fresh, mapped, ours, group))
    for what in ("skipped", "failed"):
        lines += [f"  {name:34}{what}: {reason}" for name, reason in group[what].items()]
    if group["mapped_error"]:
        lines.append(f"  mapped times missing: {group['mapped_error']}")
    return lines


def _row(name: str, fresh: dict, mapped: dict, ours: str | None, group: dict) -> str:
    s = fresh[name]
    quartiles = f"{_ms(s['q1'])} - {_ms(s['q3'])}"
    ratio = f"{s['median'] / fresh[ours]['median']:.2f}" if ours else ""
    gflops = group["flops"] / s["median"] / 1e9
    share = f"{group['floor'] / s['median']:.0%}"
    line = f"  {name:34}{_ms(s['median']):>10}{quartiles:>19}{ratio:>8}{gflops:>9.1f}{share:>7}"
    line += f"{'' if s['peak_bytes'] is None else round(s['peak_bytes'] / 1e6, 1):>9}"
    if name in mapped:
        m = mapped[name]["median"]
        ratio = f"{m / mapped[ours]['median']:.2f}" if ours in mapped else ""
        line += f"{_ms(m):>12}{ratio:>8}{group['floor'] / m:>7.0%}"
    return line


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or more, never in powers of ten."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
