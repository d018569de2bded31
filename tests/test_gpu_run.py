"""bench/gpu_run.sh as far as a machine with no GPU allows, and the table of its results."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "bench"), str(ROOT / "bench" / "gpu")]
import report  # noqa: E402


def gpu_run(*arguments):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "bench" / "gpu_run.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_no_gpu_is_told_at_once(tmp_path):
    start = time.perf_counter()
    done = gpu_run(tmp_path / "out")
    assert done.returncode == 3
    assert done.stderr.startswith("No GPU run on this machine: ")
    assert "without CUDA" in done.stderr or "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--help",)])
def test_bad_arguments_are_told(arguments):
    done = gpu_run(*arguments)
    assert done.returncode == 2
    assert "usage: bash bench/gpu_run.sh OUTDIR" in done.stderr


def times(device, call):
    quartiles = {"q1": 0, "q3": 0, "min": 0, "rounds": 5}
    return {
        "device": {"median": device, **quartiles},
        "call": {"median": call, **quartiles},
        "peak_bytes": 2_000_000,
    }


def group(workload, description, measured, **other):
    families = {"cuda": "ours", "grouped": "library", "loop": "loop", "vmap": "other"}
    return {
        "workload": workload, "description": description, "direction": "eval",
        "dtype": "bfloat16", "floors": {"cores": 20e-6, "tensor": 5e-6}, "families": families,
        "times": {name: times(*pair) for name, pair in measured.items()},
        "skipped": {}, "failed": {}, **other,
    }  # fmt: skip


def results(*groups):
    return {
        "device": {"gpu": "G", "driver": "D", "torch": "T", "cudnn": 1, "nvcc": "N"},
        "commit": "C", "date": "now", "rates": {"cores": 60e12, "copy": 4e12},
        "tests": {"result": "9 passed", "seconds": 3.0}, "groups": list(groups),
    }  # fmt: skip


def test_table_has_ratios_and_shares_of_the_floor():
    measured = {"cuda": (40e-6, 50e-6), "grouped": (400e-6, 100e-6), "loop": (4e-3, 5e-3)}
    text = "\n".join(report.markdown(results(group("w", "a layer", measured))))
    assert "cores 60 TFLOP/s, copy 4 TB/s" in text
    assert "- tests: 9 passed (3 s)" in text
    assert (
        "| a layer | bfloat16 | 40 (cuda) | 50% cores, 12% tensor | 10.00x (grouped) | 100x | 50 "
        "| 2.00x | 2.0 | 2.0 |"
    ) in text


def test_table_says_what_failed_and_what_is_missing():
    wrong = group("w", "a layer", {"grouped": (4e-4, 5e-4)}, failed={"cuda": "off by 1"})
    text = "\n".join(report.markdown(results(wrong)))
    assert "| a layer | bfloat16 | - | - | - | - | - | - | - | 2.0 |" in text
    assert "- w eval bfloat16, cuda: off by 1" in text


def test_hybrid_layer_is_compared_with_uniform_layers_of_its_kinds():
    pool = ("1-2-1", "1-2-2", "1-2-3", "2-1-2", "2-1-1", "3-2-1")
    uniform = [group(f"pool_{units}", units, {"cuda": (10e-6, 1)}) for units in pool]
    hybrid = group("hybrid_n64_32x32", "hybrid", {"cuda": (12e-6, 1)})
    text = "\n".join(report.markdown(results(hybrid, *uniform)))
    assert "of the same FLOPs and bytes: 1.20 times their time" in text
    assert "| 1-2-1 |" not in text
    assert report.hybrid_ratio([hybrid, *uniform[:-1]]) is None
