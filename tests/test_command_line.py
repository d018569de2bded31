"""Programs of the package whose output nobody reads any more end without a word."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bunit_kernels.command_line import NOBODY_READS, run
from bunit_kernels.report.cli import main as report
from bunit_kernels.search.cli import main as search
from bunit_kernels.train.cli import main as train


@pytest.mark.parametrize("command", [
    "train --list-models", "search --help", "report --help", "models --help", "train.data digits",
])  # fmt: skip
def test_nobody_reads(command):
    """As with ``| head`` once that has what it wants."""
    program, *arguments = command.split()
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", f"bunit_kernels.{program}", *arguments],
        stdout=write, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == ""
    # argparse keeps to itself that its help was not read.
    assert done.returncode == NOBODY_READS or "--help" in command


def test_what_is_read_arrives():
    command = [sys.executable, "-m", "bunit_kernels.train", "--list-models"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "bunit_cnn\n" in done.stdout and done.stderr == ""


def test_exit_codes_pass(capsys):
    assert run("program", lambda: None) == 0
    assert run("program", lambda: 2) == 2

    def stop():
        raise SystemExit(3)

    assert run("program", stop) == 3
    assert capsys.readouterr().err == ""


def test_another_broken_pipe_is_told(capsys):
    def lose_a_worker():
        raise BrokenPipeError(32, "Broken pipe")

    assert run("program", lose_a_worker) == 1
    assert capsys.readouterr().err == "program: [Errno 32] Broken pipe\n"


@pytest.mark.parametrize("main", [train, search, report])
def test_mains_let_a_broken_pipe_through(main, monkeypatch):
    def fail(*args, **kwargs):
        raise BrokenPipeError

    module = sys.modules[main.__module__]
    monkeypatch.setattr(module, "read_runs" if main is report else "_run", fail)
    with pytest.raises(BrokenPipeError):
        main(["folder"] if main is report else [])
