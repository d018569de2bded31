"""What each kernel takes of each architecture: compiles csrc/cuda/*.cu with nvcc, needs no GPU.

    python csrc/cuda/resources.py [--include TORCH/include] [--arch 80 ...] [source ...]

Prints a table of registers, static shared memory, local memory and spills, a kernel a row and
architecture. Ends with status 1 where a register spills or static shared memory is more than a
block may have, and with status 2 where something does not compile. Only the standard library, and
torch's headers: those of the running torch unless ``--include`` says where.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import sched_getaffinity
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ARCHITECTURES = (80, 90, 100)
#: Bytes of shared memory that a block may have without asking for more, on every architecture.
#: Static arrays cannot ask (CUDA C++ Programming Guide, "Compute Capabilities").
STATIC_SHARED = 48 * 1024


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel: bytes, but for the registers of a thread."""

    source: str
    kernel: str
    arch: str
    registers: int
    shared: int
    local: int  # stack frame: spills, and arrays that are indexed at run time
    spills: int  # stored and loaded

    def wrong(self) -> str | None:
        if self.spills:
            return f"{self.spills} bytes spilled"
        if self.shared > STATIC_SHARED:
            return f"{self.shared} bytes of static shared memory, {STATIC_SHARED} fit"
        return None


class CompileError(RuntimeError):
    """nvcc did not take a source; the message is what it said."""


def usages(
    source: Path, include: Path, architectures: Iterable[int] = ARCHITECTURES
) -> list[Usage]:
    """Compiles ``source`` to device code alone and reads what ptxas reports."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                "nvcc", "-std=c++20", "-O3", "-DUSE_CUDA",
                "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{FOLDER.parent}",
                "-isystem", str(include), *codes, "-Xptxas", "-v", "-fatbin",
                str(source), "-o", str(Path(folder) / "out.fatbin"),
            ],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode != 0:
        raise CompileError(f"{source.name} does not compile:\n{done.stderr}")
    return list(parse(source.name, done.stderr))


def parse(source: str, said: str) -> Iterable[Usage]:
    """Usages from what ``ptxas -v`` prints: for each kernel its name, its stack and its registers,
    a line each and in this order."""
    kernel = arch = None
    local = spills = 0
    for line in said.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", line):
            kernel, arch = found.groups()
            local = spills = 0
        elif found := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            local, stored, loaded = map(int, found.groups())
            spills = stored + loaded
        elif kernel and (found := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            yield Usage(
                source, demangled(kernel), f"sm_{arch}", int(found[1]),
                int(shared[1]) if shared else 0, local, spills,
            )  # fmt: skip
            kernel = None


def demangled(name: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return name
    text = subprocess.run([tool, name], capture_output=True, text=True).stdout.strip()
    text = re.sub(r"<unnamed>::|\(anonymous namespace\)::|_NV_ANON_NAMESPACE::", "", text)
    text = re.sub(r"^void |\b(?:\w+::)+", "", text)
    text = re.sub(r"\((?:int|bool|unsigned int|unsigned long)\)", "", text)
    depth = 0
    for i, c in enumerate(text):  # parameters begin at the first parenthesis outside <>
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return text[:i]
    return text


def table(rows: Sequence[Usage]) -> str:
    """Markdown, a kernel a row, an architecture a column: registers / shared / local / spills."""
    architectures = list(dict.fromkeys(r.arch for r in rows))
    cells = {(r.source, r.kernel, r.arch): r for r in rows}
    lines = [
        "registers / static shared bytes / local bytes / spilled bytes",
        "",
        " | ".join(["| kernel", *architectures]) + " |",
        "|" + "---|" * (1 + len(architectures)),
    ]
    for source, kernel in dict.fromkeys((r.source, r.kernel) for r in rows):
        found = [cells.get((source, kernel, a)) for a in architectures]
        texts = [f"{u.registers} / {u.shared} / {u.local} / {u.spills}" if u else "" for u in found]
        lines.append(" | ".join([f"| {source}: {kernel}", *texts]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--include", type=Path, help="folder of torch's headers")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("sources", type=Path, nargs="*", default=sorted(FOLDER.glob("*.cu")))
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
    print(table(rows))
    wrong = [r for r in rows if r.wrong()]
    for row in wrong:
        print(f"{row.source}: {row.kernel} on {row.arch}: {row.wrong()}", file=sys.stderr)
    return 1 if wrong else 0


def _include_of_running_torch() -> Path:
    import torch

    return Path(torch.__file__).resolve().parent / "include"


if __name__ == "__main__":
    sys.exit(main())
