"""bench/reproduce.py: the commands are of the paper's networks, results are kept and tabled."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))

import reproduce  # noqa: E402

from bunit_kernels import metrics, models  # noqa: E402
from bunit_kernels.report.published import SMALL_NETWORKS  # noqa: E402
from bunit_kernels.train.cli import parse  # noqa: E402


@pytest.mark.parametrize("name", ["I", "II"])
def test_commands_train_networks_of_the_printed_sizes(name):
    printed = {n.name.split()[0]: n.thousand_parameters for n in SMALL_NETWORKS if n.table == name}
    table = reproduce.tables()[name]
    assert [network.name for network in table.networks] == list(printed)
    for network in table.networks:
        options = parse(reproduce.command(table, network, 3))
        assert options.seed == 3 and not options.dense and options.recipe.startswith("paper-")
        model = models.create_model(options.model, **options.model_arg)
        rounded = metrics.count_parameters(model) / 1e3 - float(printed[network.name])
        assert abs(rounded) < 0.00501


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Table III of one epoch and two seeds, in a folder of its own; the file of its images."""
    whole = reproduce.tables()["III"]
    short = (*whole.options, "--epochs", "1", "--batch-size", "8")
    monkeypatch.setattr(
        reproduce, "tables", lambda: {"III": reproduce.Table(whole.networks, 2, short)}
    )
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 28, 28), dtype=np.uint8)
    labels = np.arange(32) % 10
    np.savez("few.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    return "few.npz"


def test_results_are_kept_and_tabled(few, capfd):
    assert "| bunit_mlp | | 0 | | not trained | 91.95 |" in reproduce.markdown("III")
    reproduce.train("III", few, 5, 1, (1, 2))
    assert "--seed 1 --data few.npz" in capfd.readouterr().out
    (file,) = reproduce.RESULTS.iterdir()
    assert file.name == "tableIII-bunit_mlp-1.json"
    kept = json.loads(file.read_text())
    assert [len(n["test_accuracy"]) for n in kept["networks"].values()] == [1, 1]
    reproduce.train("III", few, 5, 1, (0, 1))
    said = capfd.readouterr().out
    assert "--seed 0" in said and "--seed 1" not in said
    rows = reproduce.markdown("III").splitlines()[2:]
    for row, (name, printed) in zip(rows, (("bunit_mlp", 91.95), ("mlp", 92.65)), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == name and cells[2:4] == ["2", "1"] and cells[5] == f"{printed:.2f}"
        assert "±" in cells[4]


def test_a_run_that_was_stopped_goes_on(few, capfd):
    reproduce.train("III", few, 0.004, 1, (0, 2))  # none that are left for the program
    assert not reproduce.RESULTS.exists()
    reproduce.train("III", few, 5, 1, (0, 2))
    assert "--resume runs/tableIII-bunit_mlp-0" in capfd.readouterr().out
    assert reproduce.result_file("III", reproduce.tables()["III"].networks[0], 0).exists()


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2"])
def test_shares_that_are_none(text, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "I", f"--share={text}"])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert "expected WHICH/OF" in capsys.readouterr().err
