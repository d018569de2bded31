"""Instructions that the CPU kernels take for fixed work: a guard that a busy machine cannot trip.

    python bench/instructions.py [--write]

Runs each case once in one process under valgrind's callgrind, which counts the instructions inside
the kernels alone (valgrind knows AVX2 and not AVX-512, so those are what it counts), and compares
them with ``bench/results/instructions.json``. Ends with status 1 where a case takes over 2 % more
than recorded by the same compiler; what another one makes is shown and not judged. ``--write``
records what was counted. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

RECORDED = Path(__file__).resolve().parent / "results" / "instructions.json"
ALLOWED = 1.02
KERNELS = "*bunit::avx2::*_item<*"

#: Tells callgrind, from inside the process that it runs, to put aside what it counted so far.
MARKER = """
#include <valgrind/callgrind.h>
extern "C" void mark(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


def cases() -> dict[str, Callable[[], object]]:
    """What is counted; kernels of every kind, of sizes that leave remainders."""
    import torch

    from bunit_kernels import StackedConv2d, StackedLinear

    torch.manual_seed(0)
    hybrid = ("1-2-1", "2-1-2", "3-2-1", "2-4-2:k5")

    def conv(units, count=None, *, train, channels_last=False, **more):
        layer = StackedConv2d(units, count, **more).train(train)
        x = torch.randn(2, layer.in_channels, 30, 30)
        if channels_last:
            x = x.to(memory_format=torch.channels_last)
        if not train:
            return lambda: layer(x)
        return lambda: layer(x.requires_grad_()).sum().backward()

    def linear(units, count, *, train):
        layer = StackedLinear(units, count)
        x = torch.randn(70, layer.in_features)
        if not train:
            return lambda: layer(x)
        return lambda: layer(x.requires_grad_()).sum().backward()

    return {
        "eval 2-4-2": conv("2-4-2", 8, train=False),
        "eval 2-4-2 channels_last": conv("2-4-2", 8, train=False, channels_last=True),
        "eval 2-4-4 stride 2": conv("2-4-4", 8, train=False, stride=2),
        "eval hybrid": conv(hybrid, train=False),
        "eval 16-16-16": conv("16-16-16", 2, train=False),
        "train 2-4-2": conv("2-4-2", 8, train=True),
        "train 2-4-4 stride 2": conv("2-4-4", 8, train=True, stride=2),
        "train hybrid": conv(hybrid, train=True),
        "train 8-16-8 channels_last": conv("8-16-8", 2, train=True, channels_last=True),
        "linear 4-8-4": linear("4-8-4", 16, train=False),
        "linear 4-8-4 train": linear("4-8-4", 16, train=True),
        "linear 16-30-16": linear("16-30-16", 4, train=False),
        "linear 16-30-16 train": linear("16-30-16", 4, train=True),
    }


def run_cases(marker: str) -> None:
    """The part that runs under valgrind."""
    import ctypes

    import torch

    from bunit_kernels import backend

    torch.set_num_threads(1)
    library = ctypes.CDLL(marker)
    with backend("cpp"):
        for name, run in cases().items():
            library.mark(b"before")
            with torch.set_grad_enabled("train" in name):
                run()
            library.mark(name.encode())


def count() -> dict[str, int]:
    """Instructions of each case."""
    with tempfile.TemporaryDirectory() as folder:
        source, marker = Path(folder) / "mark.cpp", Path(folder) / "mark.so"
        source.write_text(MARKER)
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", marker], check=True)
        out = Path(folder) / "out"
        subprocess.run(
            [
                "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
                f"--toggle-collect={KERNELS}", sys.executable, __file__, "--run", marker,
            ],
            check=True, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        found = {}
        for path in sorted(Path(folder).glob("out.*"), key=lambda p: int(p.suffix[1:])):
            text = path.read_text()
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)[1]
            if name != "before":
                found[name] = int(re.search(r"^(?:totals|summary): (\d+)$", text, re.MULTILINE)[1])
    return found


def compiler() -> str:
    """Name and major version of what built the kernels, as far as one can tell."""
    command = [os.environ.get("CXX", "c++"), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    name, version = re.search(r"^(.*?)\b(\d+)\.\d", said[0]).groups()
    return f"{'clang' if 'clang' in name else 'gcc'} {version}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record what is counted")
    parser.add_argument("--run", metavar="MARKER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_cases(options.run)
        return 0
    if shutil.which("valgrind") is None:
        print("no valgrind on the PATH: install it to count instructions")
        return 2
    found = {"compiler": compiler(), "instructions": count()}
    if options.write:
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    comparable = found["compiler"] == recorded["compiler"]
    print(f"{found['compiler']}, recorded with {recorded['compiler']}")
    worse = 0
    for name in dict.fromkeys([*recorded["instructions"], *found["instructions"]]):
        now, before = (each["instructions"].get(name, 0) for each in (found, recorded))
        wrong = not now or not before or now > before * ALLOWED
        worse += wrong
        print(f"{name:30} {now:12,} recorded {before:12,}{'  MORE' if wrong else ''}")
    return 1 if worse and comparable else 0


if __name__ == "__main__":
    sys.exit(main())
