"""Options, the session that measures each group once, and the tables at the end."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from groups import all_variants, group_table, run_group
from harness import quiet_warnings
from mapped import MappedProcess
from networks import NETWORKS, network_table, network_variants, run_network_group
from rates import commit, machine, measure_rates
from workloads import WORKLOADS

QUICK = os.environ.get("BUNIT_BENCH_QUICK", "") not in ("", "0")

#: Rounds at least. Layers' outputs are large for their arithmetic, and now and then the system
#: takes twice as long to give memory for them; that was so in two of three rounds once.
LAYER_ROUNDS, NETWORK_ROUNDS = (1, 1) if QUICK else (5, 3)


def pytest_addoption(parser):
    group = parser.getgroup("bunit_kernels benchmarks")
    group.addoption(
        "--budget", type=float, default=0.02 if QUICK else 2.0, metavar="SECONDS",
        help="rounds of one group go on for about so long (default: %(default)s)",
    )  # fmt: skip
    group.addoption("--full", action="store_true", help="torch.compile with max-autotune, too")
    group.addoption("--results", metavar="FILE", help="write all results there, as JSON")
    group.addoption("--device", default="cpu", help="where to run (default: %(default)s)")


def pytest_configure(config):
    if config.getoption("--results"):  # not told only after the measuring
        Path(config.getoption("--results")).resolve().parent.mkdir(parents=True, exist_ok=True)
    config.stash[SESSION] = Session(config)


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        effort = "quick" if QUICK else "full" if full else "default"
        triples = all_variants(effort)
        ids = ["-".join((w, d, v.replace(" ", "_"))) for w, d, v in triples]
        # Not parametrised fixtures: pytest would be free to reorder the groups.
        metafunc.parametrize(("workload", "direction", "variant"), triples, ids=ids)
    if "network_variant" in metafunc.fixturenames:
        triples = network_variants(QUICK)
        ids = ["-".join((n, d, v.replace(" ", "_"))) for n, d, v in triples]
        metafunc.parametrize(("network", "direction", "network_variant"), triples, ids=ids)


def pytest_collection_finish(session):
    """Which variants were selected: those of a group are measured together."""
    selected = session.config.stash[SESSION].selected
    for item in session.items:
        params = getattr(item, "callspec", None) and item.callspec.params
        for of, variant in (("workload", "variant"), ("network", "network_variant")):
            if params and variant in params:
                key = params[of], params["direction"]
                selected.setdefault(key, []).append(params[variant])


class Session:
    """Measures groups as their first test asks for them, and keeps what came out."""

    def __init__(self, config):
        self.config = config
        self.selected: dict[tuple[str, str], list[str]] = {}
        self.groups: dict = {}
        self.networks: dict = {}
        self.child = MappedProcess()
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._rates: dict | None = None

    @property
    def rates(self) -> dict:
        if self._rates is None:
            self._rates = measure_rates(QUICK)
        return self._rates

    def group(self, name: str, direction: str):
        key = name, direction
        if key not in self.groups:
            _ = self.rates  # measured before the first group
            workload = next(w for w in WORKLOADS if w.name == name)
            self.groups[key] = run_group(
                workload.small() if QUICK else workload,
                direction,
                self.selected[key],
                self.config.getoption("--budget"),
                LAYER_ROUNDS,
                self.child,
                self.config.getoption("--device"),
            )
        return self.groups[key]

    def network(self, name: str, direction: str):
        key = name, direction
        if key not in self.networks:
            _ = self.rates  # measured before the first group
            work = next(w for w in NETWORKS if w.name == name)
            self.networks[key] = run_network_group(
                work.small() if QUICK else work,
                direction,
                self.selected[key],
                self.config.getoption("--budget"),
                NETWORK_ROUNDS,
                self.config.getoption("--device"),
            )
        return self.networks[key]

    def results(self) -> dict:
        return {
            "machine": machine(),
            "load_before": self.load,
            "rates": self.rates,
            "commit": commit(),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "quick": QUICK,
            "groups": [group.as_dict(self.rates) for group in self.groups.values()],
            "networks": [group.as_dict() for group in self.networks.values()],
        }


SESSION = pytest.StashKey[Session]()


@pytest.fixture(scope="session")
def measuring(request):
    """The session that measures, its threads set."""
    quiet_warnings()
    threads = torch.get_num_threads()
    if QUICK:  # nothing is large enough for more, and CI machines share their cores
        torch.set_num_threads(1)
    session = request.config.stash[SESSION]
    yield session
    session.child.close()
    torch.set_num_threads(threads)


@pytest.fixture
def measured(measuring):
    """``measured(workload, direction)``: the group, measured at the first call."""
    return measuring.group


@pytest.fixture
def measured_network(measuring):
    """``measured_network(network, direction)``: likewise."""
    return measuring.network


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter, config):
    session = config.stash[SESSION]
    if not session.groups and not session.networks:
        return
    found = session.results()
    rates, computer = found["rates"], found["machine"]
    terminalreporter.section("groups")
    terminalreporter.write_line(
        f"{computer['cpu']}, {computer['threads']} threads, {computer['isa']}, torch "
        f"{computer['torch']}: {rates['flops'] / 1e9:.0f} GFLOP/s ({rates['flops_by']}), copy "
        f"{rates['bytes'] / 1e9:.1f} GB/s; load average before: {found['load_before']}"
    )
    for group in found["groups"]:
        terminalreporter.write_line("")
        for line in group_table(group):
            terminalreporter.write_line(line)
    for group in found["networks"]:
        terminalreporter.write_line("")
        for line in network_table(group):
            terminalreporter.write_line(line)
    path = config.getoption("--results")
    if path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n")
        terminalreporter.write_line(f"\nresults: {path}")
