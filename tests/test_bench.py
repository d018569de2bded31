"""The benchmarks' own parts, as far as no time is taken: variants built, checked and left out."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path += [str(Path(__file__).resolve().parent.parent / part) for part in ("bench", "bench/gpu")]
import crossover
import groups
import layers
import many_units
import recompute
import table
import training_table
from peers import PEERS, Unsupported, peer
from workloads import Workload, make_case

SMALL = Workload("small", "2-4-2", 2, 2, 5)


@pytest.fixture
def odd_peers():
    """One that cannot run, and one that runs and is wrong."""

    @peer("nothing", "other")
    def nothing(case):
        raise Unsupported("not on this machine")

    @peer("wrong", "other")
    def wrong(case):
        made = PEERS["loop"].build(case)
        right = made.run
        made.run = lambda: tuple(2 * t for t in right())
        return made

    yield
    del PEERS["nothing"], PEERS["wrong"]


@pytest.mark.parametrize("direction", ["eval", "train"])
def test_group_of_which_nothing_can_run(direction, odd_peers):
    group = groups.run_group(SMALL, direction, ["nothing", "wrong"], 0.01, 2, child=None)
    assert group.skipped == {"nothing": "not on this machine"}
    assert group.failed["wrong"].startswith("wrong: output off by 1.0e+00")
    assert group.samples == group.mapped == {}


class Answers:
    """In place of the child process: remembers what it was asked for."""

    def __init__(self, seconds: float):
        self.jobs, self.seconds = [], seconds

    def measure(self, **job):
        self.jobs.append((job["workload"]["name"], job["direction"]))
        return {"summaries": {name: {"median": self.seconds} for name in job["names"]}}


@pytest.mark.parametrize("direction", ["eval", "level", "level_grad", "train"])
def test_whole_layers_are_measured_into_mapped_memory_too(direction):
    child, names = Answers(0.25), ["auto", "loop", "dense layer"]
    group = groups.run_group(SMALL, direction, names, 0.01, 2, child)
    mapped = direction in ("eval", "train")
    assert child.jobs == ([("small", direction)] if mapped else [])
    assert ("auto" in group.mapped) == mapped
    head, _, row = table.markdown(
        {"groups": [group.as_dict({"flops": 1e9, "bytes": 1e9})]}, [direction]
    )
    assert head.count("|") == row.count("|") and ("mapped" in head) == mapped
    assert ("250" in [cell.strip() for cell in row.split("|")]) == mapped
    assert ("other peers" in head) == (direction != "eval")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", ["eval", "train"])
def test_variants_of_a_gpu_are_checked_in_their_dtype(direction, dtype, odd_peers, monkeypatch):
    monkeypatch.setattr(layers, "make_case", lambda workload, to, _: make_case(workload, to))
    made = make_case(SMALL, direction)
    case, expected = layers.cast(made, dtype), layers.expected_of(made, dtype)
    built = layers.build(case, ["grouped", "auto", "nothing", "wrong"], expected, dtype)
    assert list(built.variants) == ["grouped", "auto"]
    assert list(built.skipped) == ["nothing"] and list(built.failed) == ["wrong"]


def test_crossover_compares_every_width(monkeypatch, capsys):
    """A row of ratios for each operation, direction and format, PyTorch's time over ours."""
    monkeypatch.setattr(crossover, "WIDTHS", (2, 4))
    monkeypatch.setattr(crossover, "CHANNELS", 8)
    monkeypatch.setattr(crossover, "IMAGES", ((1, 4),))
    monkeypatch.setattr(sys, "argv", ["crossover.py", "--rounds", "2"])
    crossover.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len({row[:60] for row in rows}) == len(rows) == 18
    assert all(float(ratio) > 0 for row in rows for ratio in row[60:].split())
    assert all(len(row[60:].split()) == 2 for row in rows)


def test_recompute_tells_what_each_way_keeps(monkeypatch, capsys):
    """Of a 2-4-2 layer half as much, made again; the rule is as it was afterwards."""
    rule = recompute.Cpp.recomputes
    monkeypatch.setattr(recompute, "WORKLOADS", (Workload("small", "2-4-2", 8, 32, 32),))
    monkeypatch.setattr(sys, "argv", ["recompute.py", "--rounds", "1"])
    recompute.main()
    assert recompute.Cpp.recomputes is rule
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 2
    for row in rows:
        kept, again = (float(cell.split()[-1]) for cell in row[56:].split("MB")[:2])
        assert again == pytest.approx(kept / 2, rel=0.25)


def test_table_of_training_runs_has_equation_9s_scores(tmp_path, monkeypatch, capsys):
    """Means over seeds, of a file as earlier versions wrote it too: other scores, and a beta."""
    for seed, accuracy in ((0, 0.90), (1, 0.94)):
        figures = {"parameters": 50, "flops": 20, "accuracy": accuracy}
        dense = {"parameters": 100, "flops": 100, "accuracy": 0.95}
        old = {"beta": 1.0, "tca": 0.5, "tsa": 0.5, "dense_flops": 100}
        run = {
            "settings": {"model": "bunit_cnn", "epochs": 3, "seed": seed},
            "data": {"name": "mnist.npz", "shape": [1, 28, 28]},
            "networks": {"bunit_cnn": figures, "cnn": dense},
            "comparison": old,
        }
        (tmp_path / f"{seed}.json").write_text(json.dumps(run))
    monkeypatch.setattr(sys, "argv", ["training_table.py", str(tmp_path)])
    training_table.main()
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")]
    assert cells[1:5] == ["`bunit_cnn`", "mnist", "3", "2"] and cells[10] == "5.00x"
    lost = [(0.95 - accuracy) / 0.95 for accuracy in (0.90, 0.94)]
    for cell, saved in ((cells[11], 0.8), (cells[12], 0.5)):
        means = [
            sum(math.exp(w1 * saved - w2 * share) for share in lost) / 2
            for w1, w2 in ((1, 1), (1, 4), (4, 1))
        ]
        assert cell == ", ".join(f"{mean:.2f}" for mean in means)


def test_many_units_has_a_row_a_count(monkeypatch, capsys):
    monkeypatch.setattr(many_units, "COUNTS", (3, 10))
    many_units.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 3", "| 10"]
