"""What each CUDA kernel takes of each architecture; needs no GPU.

    python bench/resources/cuda_kernels.py [--arch 80 ...] [LIBRARY | SOURCE.cu ...]

Reads a compiled library (``bunit_kernels/_C_cuda.so``), or compiles sources with nvcc first: all of
csrc/cuda where none is named. Prints a table of registers, static shared memory and stack (spilled
registers, and arrays indexed at run time), a kernel a row and architecture. Ends with status 1
where a kernel has a stack or more static shared memory than a block may have, and with status 2
where something does not compile or an architecture is missing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from os import sched_getaffinity
from pathlib import Path

from usage import Usage, read, report

CSRC = Path(__file__).resolve().parents[2] / "csrc"
ARCHITECTURES = (80, 90, 100)
#: Bytes of shared memory that a block may have without asking for more, on every architecture.
#: Static arrays cannot ask (CUDA C++ Programming Guide, "Compute Capabilities").
STATIC_SHARED = 48 * 1024


class NotCompiled(RuntimeError):
    """There is no machine code of what was asked for; the message says why."""


def usages(file: Path, architectures: Iterable[int] = ARCHITECTURES) -> list[Usage]:
    """Those of a library's kernels, or of a source's, which is compiled to device code alone."""
    if file.suffix != ".cu":
        return list(read(file))
    if shutil.which("nvcc") is None:
        raise NotCompiled("no nvcc on the PATH: install the CUDA toolkit to compile the kernels")
    # As setup.py has it: machine code of all from the PTX of the lowest.
    codes = ",".join(f"sm_{a}" for a in architectures)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.fatbin"
        done = subprocess.run(
            [
                "nvcc", "-std=c++20", "-O3", f"-I{CSRC}",
                f"-gencode=arch=compute_{min(architectures)},code=[{codes}]",
                "-fatbin", str(file), "-o", str(out),
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            raise NotCompiled(f"{file.name} does not compile:\n{done.stderr}")
        return [replace(usage, source=file.name) for usage in read(out)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("files", type=Path, nargs="*", default=sorted(CSRC.glob("cuda/*.cu")))
    options = parser.parse_args(arguments)
    try:
        with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
            found = pool.map(lambda file: usages(file, options.arch), options.files)
            rows = [usage for of_file in found for usage in of_file]
        there = {usage.arch for usage in rows}
        if missing := [f"sm_{arch}" for arch in options.arch if f"sm_{arch}" not in there]:
            raise NotCompiled(f"no kernel for {', '.join(missing)}, found {sorted(there)}")
    except NotCompiled as error:
        print(error, file=sys.stderr)
        return 2
    wrong = [f"{r}: {r.local} bytes of stack" for r in rows if r.local]
    wrong += [
        f"{r}: {r.shared} bytes of static shared memory, {STATIC_SHARED} fit"
        for r in rows
        if r.shared > STATIC_SHARED
    ]
    return report(rows, wrong)


if __name__ == "__main__":
    sys.exit(main())
