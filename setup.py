"""Builds the compiled parts, and is the build backend that pip calls (see pyproject.toml).

Two shared objects with no Python in them, loaded with ``torch.ops.load_library``: ``_C_cpu.so``
and ``_C_cuda.so``. Both use torch's stable ABI alone, so one build serves every torch from 2.11 on
and every Python.

The CUDA part needs nvcc and a CUDA build of torch. It is built for the GPUs that are seen. Where
none is seen, as on a login node or in a container's build, which architecture to build for is not
known, and most who have nvcc but no GPU have no use for minutes of it: there it is built on demand.

Environment variables:
    BUNIT_CUDA: ``1`` builds the CUDA part, or fails where it cannot be built; ``0`` leaves it out.
    TORCH_CUDA_ARCH_LIST: architectures, such as ``8.0;9.0+PTX``; builds the CUDA part too.
    CUDA_HOME: the CUDA toolkit, where nvcc is not on the PATH.
    CXX: the C++ compiler.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  the hooks that stay as they are
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1, which --no-build-isolation may find
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11
OLDEST_CUDA = (12, 0)  # the first whose nvcc takes C++20
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"  # where no GPU is seen
ISAS = ("avx512", "avx2", "generic")  # folders of csrc/cpu
DISK_SPACE = 300 << 20  # bytes that the objects of both parts take at their height, and some


# The hooks. Under build isolation pip hides the packages of the environment it installs into, but
# their files are there: torch is asked for, all gigabytes of it, only where there is none.


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_requirement()


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def _torch_requirement() -> list[str]:
    return [] if find_torch() else ["torch>=" + ".".join(map(str, OLDEST_TORCH))]


def torch_folders() -> Iterator[tuple[Path, tuple[int, int]]]:
    """Every torch with headers, and its version: that of the environment installed into, then those
    of the build environment."""
    folders = [sysconfig.get_paths()[key] for key in ("purelib", "platlib")] + sys.path
    for folder in dict.fromkeys(folders):
        torch = Path(folder or ".") / "torch"
        version = torch / "version.py"
        if not version.is_file() or not (torch / "include").is_dir():
            continue
        found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
        if found:
            yield torch, (int(found[1]), int(found[2]))


def find_torch() -> Path | None:
    """The first torch that is new enough."""
    return next((torch for torch, version in torch_folders() if version >= OLDEST_TORCH), None)


def why_no_torch() -> str:
    oldest = ".".join(map(str, OLDEST_TORCH))
    found = [f"{v[0]}.{v[1]} in {torch.parent}" for torch, v in torch_folders()]
    got = f"found torch {', '.join(found)}" if found else "found none"
    return f"no torch to build with: {got}, expected {oldest} or newer: pip install -U torch"


def find_cuda() -> Path | None:
    """The CUDA toolkit's folder. An nvcc on the PATH may be a script that calls the real one, so a
    folder counts only with the runtime library beside it."""
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places += [Path(nvcc).resolve().parent.parent] if nvcc else []
    places += ["/usr/local/cuda"]
    for place in places:
        if place and (Path(place) / "bin" / "nvcc").is_file():
            root = Path(place)
            if list(root.glob("lib64/libcudart.so*")) or list(root.glob("lib/libcudart.so*")):
                return root
    return None


def why_no_cuda(torch: Path) -> str | None:
    """Why the CUDA part cannot be built here, with the remedy, or ``None``."""
    cuda = find_cuda()
    if cuda is None:
        return "no nvcc was found: install the CUDA toolkit, or set CUDA_HOME"
    version = toolkit_version(cuda)
    if version < OLDEST_CUDA:
        got, oldest = (".".join(map(str, v)) for v in (version, OLDEST_CUDA))
        return f"nvcc in {cuda} is of CUDA {got}, too old: install CUDA {oldest} or newer"
    if not list(torch.glob("lib/libtorch_cuda.*")):
        return "torch is a build for the CPU: install a CUDA build of torch"
    return None


def toolkit_version(cuda: Path) -> tuple[int, int]:
    said = subprocess.run([cuda / "bin" / "nvcc", "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+)\.(\d+)", said.stdout)
    if found is None:
        raise SystemExit(f"{cuda / 'bin' / 'nvcc'} --version names no release: {said.stdout!r}")
    return int(found[1]), int(found[2])


def seen_architectures() -> list[str]:
    """Compute capabilities of this machine's GPUs, such as ``9.0``; asks the driver, since torch
    may not be importable while this runs."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, found = ctypes.c_int(), set()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    for device in range(count.value):
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ... MINOR
        found.add((major.value, minor.value))
    return [f"{major}.{minor}" for major, minor in sorted(found)]


@dataclass(frozen=True)
class CudaChoice:
    """Whether the CUDA part is built, for which architectures, and a line that says so."""

    architectures: str | None
    reason: str


@functools.cache
def choose_cuda(torch: Path) -> CudaChoice:
    """
    Raises:
        SystemExit: BUNIT_CUDA is neither 0 nor 1, or is 1 where the part cannot be built.
    """
    asked = os.environ.get("BUNIT_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"BUNIT_CUDA={asked!r}: expected 0, 1 or nothing")
    if asked == "0":
        return CudaChoice(None, "CPU part only: BUNIT_CUDA=0")
    reason = why_no_cuda(torch)
    if reason is not None:
        if asked == "1":
            raise SystemExit(f"BUNIT_CUDA=1, but {reason}")
        return CudaChoice(None, f"CPU part only: {reason}, and install again")
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    seen = ";".join(seen_architectures())
    if listed or seen or asked == "1":
        chosen = listed or seen or CUDA_ARCHITECTURES
        why = "TORCH_CUDA_ARCH_LIST" if listed else "the GPU here" if seen else "BUNIT_CUDA=1"
        return CudaChoice(chosen, f"CPU and CUDA parts, for {chosen} ({why})")
    return CudaChoice(
        None,
        "CPU part only: no GPU is seen here. For a GPU elsewhere install again with BUNIT_CUDA=1 "
        f"(for {CUDA_ARCHITECTURES}) or TORCH_CUDA_ARCH_LIST=9.0, say",
    )


def cuda_flags(architectures: str, toolkit: Path) -> list[str]:
    """nvcc's flags for a list such as ``8.0;9.0+PTX``: machine code of each, made of the PTX of the
    lowest, since to make PTX anew for each takes about as long as all the rest, and our kernels use
    nothing newer. Those like ``9.0a`` have PTX of their own."""
    plain, own, ptx = [], [], False
    for entry in re.split(r"[;,\s]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST={architectures!r}: {entry!r} is not like '9.0'")
        (own if match[3] else plain).append((int(match[1]) * 10 + int(match[2]), match[3]))
        ptx = ptx or bool(match[4])
    check_known([number for number, _ in plain + own], toolkit)
    flags = [f"-gencode=arch=compute_{n}{s},code=sm_{n}{s}" for n, s in own]
    if plain:
        lowest = min(number for number, _ in plain)
        codes = [f"sm_{number}" for number, _ in plain] + [f"compute_{lowest}"] * ptx
        flags.append(f"-gencode=arch=compute_{lowest},code=[{','.join(codes)}]")
    elif ptx:
        flags.append("-gencode=arch=compute_{0}{1},code=compute_{0}{1}".format(*own[-1]))
    return flags


def check_known(architectures: list[int], toolkit: Path) -> None:
    """
    Raises:
        SystemExit: nvcc does not compile for one of them.
    """
    said = subprocess.run(
        [toolkit / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True
    )
    known = {int(number) for number in re.findall(r"compute_(\d+)", said.stdout)}
    unknown = [a for a in architectures if known and a not in known]
    if unknown:
        version = ".".join(map(str, toolkit_version(toolkit)))
        raise SystemExit(
            f"nvcc of CUDA {version} in {toolkit} does not know architecture {unknown[0] / 10}, "
            f"only {', '.join(str(a / 10) for a in sorted(known))}: set TORCH_CUDA_ARCH_LIST to "
            "some of these, or install a newer CUDA toolkit"
        )


def architecture_numbers(architectures: str) -> str:
    """As ``__CUDA_ARCH_LIST__`` has them: ``800,900``."""
    found = re.findall(r"(\d+)\.(\d+)", architectures)
    return ",".join(str(100 * int(major) + 10 * int(minor)) for major, minor in found)


def find_compiler() -> list[str]:
    """The C++ compiler as a command.

    Raises:
        SystemExit: there is none, or it is too old.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
    remedy = "install g++ 12 or newer, or set CXX to a compiler that takes C++20"
    try:
        done = subprocess.run(
            [*compiler, "-std=c++20", "-x", "c++", "-fsyntax-only", "-"],
            input="#include <concepts>\n", capture_output=True, text=True,
        )  # fmt: skip
    except OSError as error:
        raise SystemExit(
            f"no C++ compiler ({shlex.join(compiler)}: {error.strerror}): {remedy}"
        ) from None
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise SystemExit(f"{shlex.join(compiler)} does not take C++20 ({said}): {remedy}")
    return compiler


def check_space(folder: Path) -> None:
    """
    Raises:
        SystemExit: the disk has no room for what is compiled.
    """
    free = shutil.disk_usage(folder).free
    if free < DISK_SPACE:
        raise SystemExit(
            f"{folder} has {free >> 20} MiB of free disk space, compiling takes "
            f"{DISK_SPACE >> 20}: make room, or set TMPDIR to a folder that has it"
        )


def tell(line: str) -> None:
    """One line to whoever installs: on the terminal, since pip shows nothing of what a build
    prints, and on stderr, which pip shows with ``-v``."""
    line = f"bunit_kernels: {line}\n"
    sys.stderr.write(line)
    sys.stderr.flush()
    if not sys.stderr.isatty():
        try:
            with open("/dev/tty", "w") as terminal:
                terminal.write(f"\n{line}")
        except OSError:
            pass  # no terminal: a container's build, a cron job


class BuildStable(build_ext):
    """Compiles with ninja, in parallel and only what has changed; without ninja one by one."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:  # objects stay, so that the next install compiles what changed
            self.build_temp = str(ROOT / "build" / "editable")

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / ext.name
        for needed in (target.parent, folder):
            needed.mkdir(parents=True, exist_ok=True)
            check_space(needed)
        commands, link = self._commands(ext, find_compiler())
        objects = {folder / f"{Path(s).relative_to('csrc')}.o": ROOT / s for s in ext.sources}
        for out in objects:
            out.parent.mkdir(parents=True, exist_ok=True)
        ninja = shutil.which("ninja") or _ninja_of_package()
        tell(f"compiling {len(objects)} files of {target.name}")
        start = time.monotonic()
        if ninja:
            self._run_ninja(ninja, folder, commands, link, objects, target)
        else:
            for out, source in objects.items():
                command = commands[source.suffix]
                subprocess.check_call([*command, "-c", str(source), "-o", str(out)])
            compiler, libraries = link
            subprocess.check_call([*compiler, *map(str, objects), "-o", str(target), *libraries])
        tell(f"{target.name} took {time.monotonic() - start:.0f} s")

    def _commands(self, ext: Extension, compiler: list[str]):
        """The command that compiles a source, by its suffix, and that which links, as what stands
        before the objects and what behind."""
        torch = find_torch()
        include = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include")]
        linker, libraries = [*compiler, "-shared"], [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        flags = ["-std=c++20", "-O3", STABLE_ABI]
        host = [*compiler, *flags, "-fPIC", "-fvisibility=hidden", "-Wno-psabi"]
        if not ext.name.endswith("_C_cuda"):
            return {".cpp": [*host, *include]}, (linker, libraries)
        cuda = find_cuda()
        library = next(p for p in (cuda / "lib64", cuda / "lib") if p.is_dir())
        libraries += ["-ltorch_cuda", f"-L{library}", "-lcudart"]
        chosen = choose_cuda(torch).architectures
        host += ["-DUSE_CUDA", *include, "-isystem", str(cuda / "include")]
        host += [f"-DBUNIT_ARCHITECTURES={architecture_numbers(chosen)}"]
        device = [str(cuda / "bin" / "nvcc"), *flags, "-DUSE_CUDA", *include]
        device += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
        device += cuda_flags(chosen, cuda)
        return {".cpp": host, ".cu": device}, (linker, libraries)

    def _run_ninja(self, ninja, folder, commands, link, objects, target) -> None:
        def quoted(words) -> str:
            return " ".join(shlex.quote(str(w)).replace("$", "$$") for w in words)

        def path(p: Path) -> str:
            return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        linker, libraries = link
        lines = ["rule link", f"  command = {quoted(linker)} $in -o $out {quoted(libraries)}"]
        for suffix, command in commands.items():
            lines += [
                f"rule compile_{suffix[1:]}",
                f"  command = {quoted(command)} -MMD -MF $out.d -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
            ]
        # Ninja begins with what is listed first: what takes longest.
        by_cost = sorted(objects, key=lambda out: -cost(objects[out]))
        for out in by_cost:
            source = objects[out]
            lines.append(f"build {path(out)}: compile_{source.suffix[1:]} {path(source)}")
        lines += [f"build {path(target)}: link {' '.join(map(path, by_cost))}", ""]
        (folder / "build.ninja").write_text("\n".join(lines))
        status = run_with_progress([ninja, "-C", str(folder)])
        if status != 0:
            check_space(folder)  # a compiler without room says so in many ways
            raise SystemExit(f"ninja ended with status {status}: what failed stands above")


def run_with_progress(command: list[str]) -> int:
    """Its exit status. What it prints is passed on; every ten seconds the terminal is told how many
    of ninja's steps are done, ``[3/24]``."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    told = time.monotonic()
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        done = re.match(r"\[(\d+)/(\d+)\]", line)
        if done and time.monotonic() - told > 10:
            tell(f"{done[1]} of {done[2]}")
            told = time.monotonic()
    return process.wait()


def cost(source: Path) -> int:
    """Kernels take longer to compile than what calls them."""
    return 1 if source.suffix == ".cu" or source.parent.name in ISAS else 0


class AnyPythonWheel(bdist_wheel):
    """A wheel of shared objects in which there is no Python: for every Python, for one platform."""

    def run(self) -> None:
        # What an earlier build left there, an object for CUDA perhaps, would come along.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def _ninja_of_package() -> str | None:
    try:
        import ninja
    except ImportError:
        return None
    return str(Path(ninja.BIN_DIR) / "ninja")


def part(name: str, *patterns: str) -> Extension:
    found = sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))
    return Extension(name, found)


def cpu_part() -> Extension:
    folders = [f"csrc/cpu/{isa}/*.cpp" for isa in ISAS]
    return part("bunit_kernels._C_cpu", "csrc/schema.cpp", "csrc/cpu/*.cpp", *folders)


def cuda_part() -> Extension:
    return part("bunit_kernels._C_cuda", "csrc/cuda/*.cpp", "csrc/cuda/*.cu")


def extensions() -> list[Extension]:
    """
    Raises:
        SystemExit: there is no torch to build with, or see ``choose_cuda``.
    """
    torch = find_torch()
    if torch is None:
        raise SystemExit(why_no_torch())
    choice = choose_cuda(torch)
    tell(choice.reason)
    return [cpu_part()] if choice.architectures is None else [cpu_part(), cuda_part()]


if __name__ == "__main__":
    building = any(word in sys.argv for word in ("build_ext", "bdist_wheel", "editable_wheel"))
    setup(
        # Asking for metadata needs neither torch nor a compiler.
        ext_modules=extensions() if building else [cpu_part()],
        cmdclass={"bdist_wheel": AnyPythonWheel, "build_ext": BuildStable},
    )
