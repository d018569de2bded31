"""Processes that train one network together, connected by gloo: as one with all their batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import CALM, TINY, assert_same, state
from torch import nn

from bunit_kernels import StackedConv2d
from bunit_kernels.nn.sync_norm import CpuSyncBatchNorm, convert_sync_norm
from bunit_kernels.train import main

ROOT = Path(__file__).resolve().parents[1]

# Starts training as its arguments say. What KILL names, "rank epoch batch", dies in the first try.
WORKER = """
import os, signal, sys
from bunit_kernels.train import main
from bunit_kernels.train.loop import Learner

backward, kill = Learner.backward, os.environ.get("KILL")

def killed(learner, *args):
    place = f"{learner.processes.rank} {len(learner.history)} {learner.batches}"
    if learner.processes.restarts == 0 and place == kill:
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(learner, *args)

Learner.backward = killed
sys.exit(main(sys.argv[1:]))
"""


def torchrun(tmp_path: Path, *options: str, restarts: int = 0, kill: str | None = None):
    """Two processes on this machine, started by torchrun; a ``subprocess.CompletedProcess``."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if kill:
        environment["KILL"] = kill
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts), str(worker), *options]
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )


def options(images: str, out: Path, batch: int, *more: str) -> list[str]:
    base = ["--data", images, "--epochs", "2", "--batch-size", str(batch), "--quiet", *TINY, *CALM]
    return [*base, "--out", str(out), *more]


@pytest.mark.slow
def test_two_processes_are_one_with_the_doubled_batch(images, tmp_path):
    assert main(options(images, tmp_path / "one", 16)) == 0
    done = torchrun(tmp_path, *options(images, tmp_path / "two", 8))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy after the last epoch") == 1  # one of them prints
    assert "batches of 8 in each of 2 processes" in done.stdout
    for name in ("bunit_cnn", "cnn"):
        one, two = (state(tmp_path / run, f"{name}_last.pt") for run in ("one", "two"))
        # float32: sums of statistics and gradients in another order, over 12 steps. A rounding may
        # also turn a ReLU on or off; a wrong statistic would be off by a tenth and more.
        for key, value in one["state"].items():
            torch.testing.assert_close(two["state"][key], value, rtol=2e-3, atol=2e-4, msg=key)
        for a, b in zip(one["history"], two["history"], strict=True):
            assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-3)
            assert b["test_accuracy"] == pytest.approx(a["test_accuracy"], abs=1 / 32)


@pytest.mark.thorough
def test_killed_worker_is_started_again_and_nothing_is_lost(images, tmp_path):
    """Rank 1 gets SIGKILL in the second epoch; torchrun starts both again."""
    more = ("--save-every", "2", "--no-dense")
    whole = torchrun(tmp_path, *options(images, tmp_path / "whole", 8, *more))
    assert whole.returncode == 0, whole.stderr
    done = torchrun(
        tmp_path, *options(images, tmp_path / "part", 8, *more), restarts=1, kill="1 1 3"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    for which in ("last", "best"):
        name = f"bunit_cnn_{which}.pt"
        assert_same(state(tmp_path / "whole", name), state(tmp_path / "part", name))


def norm_of_two(rank: int, port: int, folder: str) -> None:
    """One process's half of a batch through a stacked layer in training mode."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    layer = torch.load(f"{folder}/layer.pt", weights_only=False)
    layer = convert_sync_norm(layer)
    x = torch.load(f"{folder}/x.pt").chunk(2)[rank].requires_grad_()
    y = layer(x)
    (y * torch.load(f"{folder}/grad.pt").chunk(2)[rank]).sum().backward()
    parameters = [p.grad for p in layer.parameters()]
    for grad in parameters:
        torch.distributed.all_reduce(grad)
    torch.save([y.detach(), x.grad, *parameters, *layer.buffers()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_synchronised_statistics_are_those_of_the_whole_batch(tmp_path):
    """Outputs, all gradients and running statistics of a stacked layer, in float64."""
    layer = StackedConv2d(["2-4-2", "1-2-3"]).double()
    x = torch.randn(6, 3, 5, 7, dtype=torch.float64)
    grad = torch.randn(6, 5, 5, 7, dtype=torch.float64)
    for name, value in (("layer", layer), ("x", x), ("grad", grad)):
        torch.save(value, tmp_path / f"{name}.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(norm_of_two, (port, str(tmp_path)), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    x.requires_grad_()
    y = layer(x)
    (y * grad).sum().backward()
    whole = [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]
    for i, (a, b, expected) in enumerate(zip(*halves, whole, strict=True)):
        found = torch.cat([a, b]) if i < 2 else a
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        if i >= 2:
            assert torch.equal(a, b)


def test_alone_a_synchronised_norm_is_a_norm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3))
    synced = convert_sync_norm(nn.Sequential(nn.BatchNorm2d(3)))
    assert type(synced[0]) is CpuSyncBatchNorm
    x = torch.randn(4, 3, 5, 5)
    for mode in (True, False):
        torch.testing.assert_close(synced.train(mode)(x), plain.train(mode)(x))
    assert_same(dict(synced.state_dict()), dict(plain.state_dict()))


# --- bad input ------------------------------------------------------------------------------------


def test_port_in_use(tiny, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in (
            ("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"),
            ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        code, folder = tiny()
    error = capsys.readouterr().err
    assert code == 2 and f"cannot join the others at 127.0.0.1:{port}" in error, error
    assert "process 0" in error and not folder.exists()


@pytest.mark.parametrize(
    "rank, world, local", [("1", "1", "0"), ("-1", "2", "0"), ("0", "two", "0"), ("0", "2", None)]
)
def test_numbers_that_torchrun_would_not_set(tiny, capsys, monkeypatch, rank, world, local):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", local)):
        if value is not None:
            monkeypatch.setenv(name, value)
    code, folder = tiny()
    error = capsys.readouterr().err
    assert code == 2 and f"RANK={rank}, WORLD_SIZE={world}" in error and not folder.exists()


def test_processes_need_a_common_folder(images, capsys, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert main(["--data", images, "--quiet"]) == 2
    assert "several processes need an --out" in capsys.readouterr().err
