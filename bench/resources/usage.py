"""What compiled kernels take of a GPU, as a table, and whether any takes too much."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: bytes, but for the registers of a thread."""

    source: str
    kernel: str
    arch: str
    registers: int
    shared: int
    local: int  # stack frame: spills, and arrays that are indexed at run time
    spills: int  # stored and loaded; where that is not told, all of ``local``

    def __str__(self) -> str:
        return f"{self.source}: {self.kernel} on {self.arch}"


def read(compiled: Path) -> Iterable[Usage]:
    """Usages of all kernels in a cubin, a fatbin or a library, by cuobjdump: that on the PATH, else
    the one that Triton's package holds."""
    tool = shutil.which("cuobjdump") or _of_triton()
    done = subprocess.run([tool, "-res-usage", compiled], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump does not read {compiled}: {done.stderr.strip()}")
    return parse_cuobjdump(compiled.name, done.stdout)


def _of_triton() -> Path:
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def parse_cuobjdump(source: str, said: str) -> Iterable[Usage]:
    """Usages from what ``cuobjdump -res-usage`` prints: the architecture of each part, and for each
    kernel in it the name and what it takes, a line each."""
    arch = kernel = None
    for line in said.splitlines():
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            kernel = found[1]
        elif kernel and "REG:" in line:
            of = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", line)}
            local = of["STACK"] + of["LOCAL"]
            yield Usage(source, demangled(kernel), arch, of["REG"], of["SHARED"], local, local)
            kernel = None


def parse_ptxas(source: str, said: str) -> Iterable[Usage]:
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
        "registers / shared bytes / local bytes / spilled bytes",
        "",
        " | ".join(["| kernel", *architectures]) + " |",
        "|" + "---|" * (1 + len(architectures)),
    ]
    for source, kernel in dict.fromkeys((r.source, r.kernel) for r in rows):
        found = [cells.get((source, kernel, a)) for a in architectures]
        texts = [f"{u.registers} / {u.shared} / {u.local} / {u.spills}" if u else "" for u in found]
        lines.append(" | ".join([f"| {source}: {kernel}", *texts]) + " |")
    return "\n".join(lines)


def report(rows: Sequence[Usage], wrong: Sequence[str]) -> int:
    """Prints the table, and to the error stream what is wrong; 1 where anything is, else 0."""
    print(table(rows))
    for what in wrong:
        print(what, file=sys.stderr)
    return 1 if wrong else 0
