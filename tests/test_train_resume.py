"""A training run interrupted at any place and taken up again is one that never was interrupted."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import CALM, assert_same, state

from bunit_kernels.train import main, run
from bunit_kernels.train.files import write_atomically, write_json
from bunit_kernels.train.loop import Learner

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {
    "sgd": [],
    "adamw, average, two batches a step": [
        "--optimizer", "adamw", "--lr", "0.01", "--ema", "0.9", "--accumulate", "2",
        "--clip-norm", "1", "--amp", "bfloat16", "--mixup", "0.2",
    ],
    "adam, of a recipe": ["--recipe", "paper-imagenet", "--epochs", "2", "--batch-size", "16"],
}  # fmt: skip


def interrupt(monkeypatch, network: str, epoch: int, batch: int) -> None:
    """Ctrl-C in a batch of an epoch of a network."""
    backward = Learner.backward

    def interrupted(learner, *args):
        if (learner.name, len(learner.history), learner.batches) == (network, epoch, batch):
            raise KeyboardInterrupt
        return backward(learner, *args)

    monkeypatch.setattr(Learner, "backward", interrupted)


def assert_same_runs(whole: Path, part: Path) -> None:
    for name in ("bunit_cnn", "cnn"):
        for which in ("last", "best"):
            assert_same(state(whole, f"{name}_{which}.pt"), state(part, f"{name}_{which}.pt"))


def test_seed_decides_every_bit(tiny):
    (_, a), (_, b) = tiny(out="a"), tiny(out="b")
    assert_same(state(a), state(b))
    assert_same(state(a, "cnn_last.pt"), state(b, "cnn_last.pt"))
    _, c = tiny("--seed", "1", out="c")
    assert not torch.equal(state(a)["state"]["head.weight"], state(c)["state"]["head.weight"])


@pytest.mark.parametrize(
    "network, epoch", [("bunit_cnn", 0), ("bunit_cnn", 1), ("cnn", 0), ("cnn", 1)]
)
def test_interrupted_and_resumed_is_uninterrupted(tiny, monkeypatch, capsys, network, epoch):
    _, whole = tiny(out="whole")
    with monkeypatch.context() as patch:
        interrupt(patch, network, epoch, 2)
        code, part = tiny(out="part")
    assert code == 130
    assert f"interrupted; continue with: python -m bunit_kernels.train --resume {part}" in (
        capsys.readouterr().err
    )
    assert len(state(part, f"{network}_last.pt")["history"]) == epoch
    assert main(["--resume", str(part), "--quiet"]) == 0
    assert_same_runs(whole, part)


@pytest.mark.parametrize("options", [[], ["--accumulate", "4", "--ema", "0.9"]], ids=str)
def test_a_run_in_pieces_of_a_few_steps_is_one(tiny, capsys, monkeypatch, options):
    _, whole = tiny(*options, out="whole")
    clock = itertools.count(step=7)  # seconds at each look
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    code, part = tiny(*options, "--max-minutes", "0.5", out="part")
    pieces = 1
    while code == 3:
        said = capsys.readouterr().err
        assert "0.5 minutes are up; continue with: python -m bunit_kernels.train --resume" in said
        code, pieces = main(["--resume", str(part), "--quiet", "--max-minutes", "0.5"]), pieces + 1
    assert code == 0 and pieces > 3
    assert_same_runs(whole, part)


def test_no_minutes_leave_something_to_resume(tiny):
    code, folder = tiny("--max-minutes", "0")
    assert code == 3 and state(folder)["history"] == [] and state(folder)["batches"] == 0
    assert main(["--resume", str(folder), "--quiet"]) == 0


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf", "soon"])
def test_minutes_that_are_none(tiny, capsys, minutes):
    with pytest.raises(SystemExit) as stop:
        tiny(f"--max-minutes={minutes}")
    assert stop.value.code == 2
    assert f"expected minutes from 0 up, got '{minutes}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "recipe, epoch, batch", [*((r, 0, 5) for r in RECIPES), ("sgd", 0, 1), ("sgd", 1, 3)]
)
def test_resumed_within_an_epoch(tiny, monkeypatch, recipe, epoch, batch):
    options = [*RECIPES[recipe], "--save-every", "1"]
    _, whole = tiny(*options, out="whole")
    with monkeypatch.context() as patch:
        interrupt(patch, "bunit_cnn", epoch, batch)
        code, part = tiny(*options, out="part")
    assert code == 130
    saved = state(part)
    step = 2 if "--accumulate" in options else 1
    assert (len(saved["history"]), saved["batches"]) == (epoch, batch - batch % step)
    assert main(["--resume", str(part), "--quiet"]) == 0
    assert_same_runs(whole, part)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(images, tmp_path):
    """A process that gets SIGKILL, again and again, wherever it is."""
    options = [
        "--data",
        images,
        "--epochs",
        "4",
        "--batch-size",
        "16",
        "--save-every",
        "2",
        "--quiet",
    ]
    options += ["--model-arg", "num_units=2", "--no-dense", *CALM]
    assert main([*options, "--out", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "bunit_kernels.train"]
    part = tmp_path / "part"
    first = [*command, *options, "--out", str(part)]
    for kill in range(4):
        again = part.is_dir() and (part / "metrics.json").is_file()
        process = subprocess.Popen(
            [*command, "--resume", str(part), "--quiet"] if again else first, cwd=ROOT
        )
        deadline = time.monotonic() + 60
        while not (part / "bunit_cnn_last.pt").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.03 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["--resume", str(part), "--quiet"]) == 0
    for which in ("last", "best"):
        name = f"bunit_cnn_{which}.pt"
        assert_same(state(tmp_path / "whole", name), state(part, name))


def test_resumed_run_can_go_further(tiny):
    _, folder = tiny("--no-dense")
    assert main(["--resume", str(folder), "--epochs", "3", "--quiet"]) == 0
    content = state(folder)
    assert [figures["epoch"] for figures in content["history"]] == [1, 2, 3]
    assert content["settings"]["epochs"] == 3 and content["settings"]["batch_size"] == 16


def test_loss_that_explodes_ends_the_run(tiny, capsys):
    """What was saved while it was well stays."""
    code, folder = tiny("--lr", "1e30", "--epochs", "3")
    error = capsys.readouterr().err
    assert code == 1 and "a lower --lr than 1e+30 or --clip-norm may help" in error
    assert len(error.splitlines()) == 1
    json.loads((folder / "metrics.json").read_text())
    assert all(torch.isfinite(v.float()).all() for v in state(folder)["state"].values())


FULL_DISK = """
import resource, sys
from bunit_kernels.train import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(sys.argv[1:]))
"""


def test_full_disk_leaves_earlier_checkpoints_whole(tiny):
    """No file may grow past 4 kB: what a full disk looks like to a program."""
    _, folder = tiny("--no-dense")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before["bunit_cnn_last.pt"]) > 4096
    command = [sys.executable, "-c", FULL_DISK, "--resume", str(folder), "--epochs", "3", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name.endswith((".pt", "tensors")))
    assert main(["--resume", str(folder), "--epochs", "3", "--quiet"]) == 0
    assert len(state(folder)["history"]) == 3


def test_checkpoint_that_does_not_fit_is_not_resumed(tiny, capsys):
    _, folder = tiny("--no-dense")
    capsys.readouterr()
    assert main(["--resume", str(folder), "--ema", "0.9", "--epochs", "3", "--quiet"]) == 2
    assert "holds no moving average" in capsys.readouterr().err
    path = folder / "bunit_cnn_last.pt"
    content = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in content.items() if key != "average"}, path)
    assert main(["--resume", str(folder), "--ema", "0.9", "--epochs", "3", "--quiet"]) == 2
    assert "holds no moving average" in capsys.readouterr().err
    assert main(["--resume", str(folder), "--optimizer", "adamw", "--epochs", "3", "--quiet"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert main(["--resume", str(folder), "--model-arg", "num_units=3", "--quiet"]) == 2
    assert "does not fit the model" in capsys.readouterr().err


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"a": 1})

    def fails(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fails)
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]
