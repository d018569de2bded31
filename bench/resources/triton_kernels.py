"""What each Triton kernel takes of each architecture: compiles what layers launch, needs no GPU.

    python bench/resources/triton_kernels.py [--arch 80 ...] [--dtype float32 ...] [--likeliest]

Runs the operations of bench's layers and a few odd ones with launches taken out: each kernel is
compiled by Triton's own ``warmup`` for the arguments that it is launched with, in every
configuration (``--likeliest``: in the one that is tried first). Prints registers, shared memory and
spills as ptxas reports them. Ends with status 1 where the likeliest configuration of a launch
spills, or any asks for more shared memory than a block may have.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # kernels are to be compiled

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton_work import DTYPES
from triton_work import run as run_work
from usage import Usage, parse_ptxas, report

from bunit_kernels.triton_kernels import tuning

ARCHITECTURES = (80, 90, 100)
#: Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, "Compute
#: Capabilities"): 163, 227 and 227 KiB.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Variant:
    """One kernel as one launch wants it, compiled."""

    kernel: str
    config: str
    likeliest: bool
    shared: int
    ptx: str


class Device:
    """Stands in for Triton's driver: a device that is compiled for and never used."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch  # a cache of kernels each

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def compiling_for(arch: int, found: dict[tuple, Variant], all_configs: bool) -> Iterator[None]:
    """Inside, launches compile for ``arch`` and note what came of it; nothing runs."""

    def compile_one(kernel, config, likeliest, args, constants):
        options = config.all_kwargs() if config else {}
        compiled = kernel.warmup(*args, **constants, **options)
        key = (arch, compiled.hash)
        if key not in found or likeliest:
            found[key] = Variant(
                kernel.fn.__name__, _name(constants, config), likeliest,
                compiled.metadata.shared, compiled.asm["ptx"],
            )  # fmt: skip

    def tuned_run(self, *args, warmup=False, **constants):
        first = self.likeliest(*args, **constants)
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        for config in self.candidates(self.configs, given) if all_configs else [first]:
            compile_one(self.kernel, config, config is first, args, constants)

    def plain_run(self, *args, warmup, **constants):
        if warmup:
            return run(self, *args, warmup=True, **constants)
        return compile_one(self, None, True, args, constants)

    run = triton.JITFunction.run
    driver.set_active(Device(arch))  # for good: without a GPU there is none to go back to
    with (
        mock.patch.object(tuning.Tuned, "run", tuned_run),
        mock.patch.object(triton.JITFunction, "run", plain_run),
    ):
        yield


def _name(constants: dict, config: triton.Config | None) -> str:
    shown = {k: v for k, v in constants.items() if k not in ("grid", "warmup")}
    if config:
        shown |= config.all_kwargs()
    return ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in shown.items())


def usage_of(variant: Variant, arch: int) -> Usage:
    """What Triton's own ptxas reports of a kernel's PTX."""
    version = re.search(r"^\.target (\w+)", variant.ptx, re.MULTILINE)[1]
    ptxas = (
        Path(triton.__file__).parent
        / "backends/nvidia/bin"
        / ("ptxas-blackwell" if arch >= 100 else "ptxas")
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(variant.ptx)
        done = subprocess.run(
            [ptxas, "-v", f"--gpu-name={version}", source, "-o", Path(folder) / "out.cubin"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    (found,) = parse_ptxas("", done.stderr)
    return Usage(
        variant.kernel, variant.config, f"sm_{arch}", found.registers, variant.shared,
        found.local, found.spills,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES)
    parser.add_argument("--likeliest", action="store_true", help="not the other configurations")
    options = parser.parse_args(arguments)
    rows, wrong = [], []
    for arch in options.arch:
        found: dict[tuple, Variant] = {}
        with compiling_for(arch, found, not options.likeliest):
            for layer in run_work(options.dtype):
                print(f"sm_{arch}: {layer}, {len(found)} kernels so far", file=sys.stderr)
        for variant in found.values():
            row = usage_of(variant, arch)
            rows.append(row)
            if row.spills and variant.likeliest:
                wrong.append(f"{row}: {row.spills} bytes spilled")
            if row.shared > SHARED[arch]:
                wrong.append(f"{row}: {row.shared} bytes of shared memory, {SHARED[arch]} fit")
    return report(rows, wrong)


if __name__ == "__main__":
    sys.exit(main())
