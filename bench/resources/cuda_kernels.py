"""What each kernel takes of each architecture: compiles csrc/cuda/*.cu with nvcc, needs no GPU.

    python bench/resources/cuda_kernels.py [--include TORCH/include] [--arch 80 ...] [source ...]

Prints a table of registers, static shared memory, local memory and spills, a kernel a row and
architecture. Ends with status 1 where a register spills or static shared memory is more than a
block may have, and with status 2 where something does not compile. Only the standard library, and
torch's headers: those of the running torch unless ``--include`` says where.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import sched_getaffinity
from pathlib import Path

from usage import Usage, parse, report

CSRC = Path(__file__).resolve().parents[2] / "csrc"
ARCHITECTURES = (80, 90, 100)
#: Bytes of shared memory that a block may have without asking for more, on every architecture.
#: Static arrays cannot ask (CUDA C++ Programming Guide, "Compute Capabilities").
STATIC_SHARED = 48 * 1024


class CompileError(RuntimeError):
    """nvcc did not take a source; the message is what it said."""


def usages(
    source: Path, include: Path, architectures: Iterable[int] = ARCHITECTURES
) -> list[Usage]:
    """Compiles ``source`` to device code alone and reads what ptxas reports."""
    # As setup.py has it: machine code of all from the PTX of the lowest.
    codes = ",".join(f"sm_{a}" for a in architectures)
    codes = [f"-gencode=arch=compute_{min(architectures)},code=[{codes}]"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                "nvcc", "-std=c++20", "-O3", "-DUSE_CUDA",
                "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{CSRC}",
                "-isystem", str(include), *codes, "-Xptxas", "-v", "-fatbin",
                str(source), "-o", str(Path(folder) / "out.fatbin"),
            ],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        raise CompileError(f"{source.name} does not compile:\n{done.stderr}")
    return list(parse(source.name, done.stderr))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--include", type=Path, help="folder of torch's headers")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("sources", type=Path, nargs="*", default=sorted(CSRC.glob("cuda/*.cu")))
    options = parser.parse_args(arguments)
    if shutil.which("nvcc") is None:
        print("no nvcc on the PATH: install the CUDA toolkit to compile the kernels")
        return 2
    include = options.include or _include_of_running_torch()
    try:
        with ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
            found = pool.map(lambda s: usages(s, include, options.arch), options.sources)
            rows = [usage for of_source in found for usage in of_source]
    except CompileError as error:
        print(error, file=sys.stderr)
        return 2
    wrong = [f"{r}: {r.spills} bytes spilled" for r in rows if r.spills]
    wrong += [
        f"{r}: {r.shared} bytes of static shared memory, {STATIC_SHARED} fit"
        for r in rows
        if r.shared > STATIC_SHARED
    ]
    return report(rows, wrong)


def _include_of_running_torch() -> Path:
    import torch

    return Path(torch.__file__).resolve().parent / "include"


if __name__ == "__main__":
    sys.exit(main())
