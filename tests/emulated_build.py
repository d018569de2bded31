"""Builds CUDA sources for the CPU with a host compiler, on the emulation in csrc/cuda/emulation.

Objects are kept under build/emulation and made anew where their command, their source or a header
of this repository has changed.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "emulation"
TORCH = Path(torch.__file__).resolve().parent
EMULATION = sorted((CSRC / "cuda" / "emulation").glob("*.cpp"))
#: Kernels and what calls them; build.cpp says what nvcc built and knows nothing else.
KERNELS = [
    path
    for pattern in ("*.cu", "*.cpp")
    for path in sorted((CSRC / "cuda").glob(pattern))
    if path.name != "build.cpp"
]
COMPILER = shutil.which("g++")


@dataclass(frozen=True)
class Flavor:
    """A way to compile. ``emulation`` are the flags of the emulation itself, ``kernels`` those of
    what runs on it."""

    name: str
    kernels: tuple[str, ...]
    emulation: tuple[str, ...]
    link: tuple[str, ...] = ()


_DEBUG = ("-O1", "-g", "-fno-omit-frame-pointer")
_ADDRESS = (
    *_DEBUG,
    "-fsanitize=address,bounds,alignment,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
)
PLAIN = Flavor("plain", ("-O2",), ("-O2",))
ADDRESS = Flavor("address", _ADDRESS, _ADDRESS, ("-fsanitize=address,undefined",))
# The emulation's bookkeeping is no part of what is watched for races.
THREAD = Flavor(
    "thread",
    (*_DEBUG, "-fsanitize=thread", "-DBUNIT_EMULATE_TSAN"),
    ("-O1", "-g", "-DBUNIT_EMULATE_TSAN"),
    ("-fsanitize=thread",),
)


def why_not() -> str | None:
    """Why nothing can be built here, or ``None``."""
    return None if COMPILER else "no g++ to build the emulated kernels with"


def why_no_kernels() -> str | None:
    """Why the project's kernels cannot be built for the emulation, or ``None``."""
    return why_not() or (None if KERNELS else "csrc/cuda holds no kernels")


def program(name: str, sources: Sequence[Path], flavor: Flavor) -> Path:
    """An executable of ``sources`` on the emulation, linked with torch where they need it."""
    return _linked(name, tuple(sources), flavor, ())


def library(name: str, sources: Sequence[Path], flavor: Flavor) -> Path:
    """A shared object of ``sources`` on the emulation."""
    return _linked(f"{name}.so", tuple(sources), flavor, ("-shared",))


@functools.cache  # looking through all headers takes seconds
def _linked(name, sources, flavor, flags) -> Path:
    folder = FOLDER / flavor.name
    with _locked(folder):
        jobs = [(s, [*flavor.emulation]) for s in EMULATION]
        jobs += [(s, [*flavor.kernels]) for s in sources]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(lambda job: _compiled(*job, folder), jobs))
        out = folder / name
        libraries = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
        uses_torch = any(CSRC in s.parents or "torch/" in s.read_text() for s in sources)
        command = [COMPILER, *flags, *flavor.link, *map(str, objects), "-o", str(out)]
        _up_to_date(out, [*command, *(libraries if uses_torch else [])], objects)
    return out


def _compiled(source: Path, flags: list[str], folder: Path) -> Path:
    out = folder / f"{source.name}.o"
    command = [
        COMPILER, "-x", "c++", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wno-psabi",
        "-Wno-unknown-pragmas", "-DBUNIT_EMULATE", "-DBUNIT_NAMESPACE=bunit_emulated",
        "-DTORCH_TARGET_VERSION=0x020b000000000000", *flags, f"-I{CSRC}",
        "-isystem", str(TORCH / "include"), "-MMD", "-c", str(source), "-o", str(out),
    ]  # fmt: skip
    _up_to_date(out, command, None)
    return out


def _up_to_date(out: Path, command: list[str], inputs: list[Path] | None) -> None:
    """Runs ``command`` unless it made ``out`` from these very inputs (those that the compiler
    listed, where ``None``)."""
    stamp = out.with_name(out.name + ".json")
    listed = out.with_suffix(".d")

    def state() -> dict:
        files = inputs if inputs is not None else _dependencies(listed)
        digests = {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.exists()}
        return {"command": command, "torch": torch.__version__, "inputs": digests}

    if out.exists() and stamp.exists() and json.loads(stamp.read_text()) == state():
        return
    stamp.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    stamp.write_text(json.dumps(state()))


def _dependencies(listed: Path) -> list[Path]:
    if not listed.exists():
        return []
    text = listed.read_text().replace("\\\n", " ").split(":", 1)[1]
    return [Path(name.replace("\\ ", " ")) for name in shlex.split(text)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time builds in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
