"""Builds the compiled parts, and is the build backend that pip calls (see pyproject.toml).

Two shared objects with no Python in them, loaded with ``torch.ops.load_library``: ``_C_cpu.so``
and, where nvcc and a CUDA build of torch are there, ``_C_cuda.so``. Both use torch's stable ABI
alone, so one build serves every torch from 2.11 on and every Python.

Environment variables: ``CXX`` (compiler), ``BUNIT_CUDA`` (``0``: leave the CUDA part out, ``1``:
fail where it cannot be built), ``TORCH_CUDA_ARCH_LIST`` (such as ``8.0;9.0``), ``CUDA_HOME``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
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
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"


# The hooks. Under build isolation pip hides the packages of the environment it installs into, but
# their files are there: torch is asked for, all gigabytes of it, only where there is none.


def get_requires_for_build_editable(config_settings=None):
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_requirement()


def get_requires_for_build_wheel(config_settings=None):
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_requirement()


def _torch_requirement() -> list[str]:
    return [] if find_torch() else ["torch>=" + ".".join(map(str, OLDEST_TORCH))]


def find_torch() -> Path | None:
    """The folder of a torch that is new enough: that of the environment installed into, else that
    of the build environment."""
    folders = [sysconfig.get_paths()[key] for key in ("purelib", "platlib")] + sys.path
    for folder in dict.fromkeys(folders):
        torch = Path(folder or ".") / "torch"
        version = torch / "version.py"
        if not version.is_file() or not (torch / "include").is_dir():
            continue
        found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
        if found and tuple(map(int, found.groups())) >= OLDEST_TORCH:
            return torch
    return None


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
    if os.environ.get("BUNIT_CUDA") == "0":
        return "BUNIT_CUDA=0: CPU only"
    if find_cuda() is None:
        return "no nvcc: CPU only (install the CUDA toolkit, or set CUDA_HOME, and install again)"
    if not list(torch.glob("lib/libtorch_cuda.*")):
        return "torch is a CPU build: CPU only (install a CUDA build of torch, and install again)"
    return None


def cuda_flags() -> list[str]:
    """``-gencode`` flags for TORCH_CUDA_ARCH_LIST."""
    flags = []
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES
    for entry in re.split(r"[;,\s]+", listed.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST={listed!r}: cannot read {entry!r}, like '9.0'")
        arch = match[1] + match[2]
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if match[3]:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    return flags


class BuildStable(build_ext):
    """Compiles with ninja, in parallel and only what has changed; without ninja one by one."""

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        torch = find_torch()
        if torch is None:
            raise SystemExit("no torch>=2.11 to build with: 'pip install torch' first")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.build_temp).resolve() / ext.name
        folder.mkdir(parents=True, exist_ok=True)
        compile_rule, link = self._commands(ext, torch)
        objects = {folder / (Path(s).name + ".o"): ROOT / s for s in ext.sources}
        ninja = shutil.which("ninja") or _ninja_of_package()
        if ninja:
            self._run_ninja(ninja, folder, compile_rule, link, objects, target)
        else:
            for out, source in objects.items():
                subprocess.check_call([*compile_rule, "-c", str(source), "-o", str(out)])
            subprocess.check_call([*link[:1], *map(str, objects), "-o", str(target), *link[1:]])

    def _commands(self, ext: Extension, torch: Path) -> tuple[list[str], list[str]]:
        compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
        include = [f"-I{ROOT / 'csrc'}", "-isystem", str(torch / "include")]
        link = ["-shared", f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
        if ext.name.endswith("_C_cuda"):
            cuda = find_cuda()
            flags = ["-std=c++20", "-O3", "-DUSE_CUDA", STABLE_ABI, *cuda_flags()]
            flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]
            library = next(p for p in (cuda / "lib64", cuda / "lib") if p.is_dir())
            link += ["-ltorch_cuda", f"-L{library}", "-lcudart"]
            return [str(cuda / "bin" / "nvcc"), *flags, *include], [*compiler, *link]
        flags = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", STABLE_ABI]
        return [*compiler, *flags, *include], [*compiler, *link]

    def _run_ninja(self, ninja, folder, compile_rule, link, objects, target) -> None:
        def quoted(words) -> str:
            return " ".join(shlex.quote(str(w)).replace("$", "$$") for w in words)

        def path(p: Path) -> str:
            return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

        head, *libraries = link
        lines = [
            "rule compile",
            f"  command = {quoted(compile_rule)} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {quoted([head])} $in -o $out {quoted(libraries)}",
            *(f"build {path(out)}: compile {path(source)}" for out, source in objects.items()),
            f"build {path(target)}: link {' '.join(map(path, objects))}",
            "",
        ]
        (folder / "build.ninja").write_text("\n".join(lines))
        subprocess.check_call([ninja, "-C", str(folder)])


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


def extensions() -> list[Extension]:
    def sources(*patterns: str) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))

    parts = [Extension("bunit_kernels._C_cpu", sources("csrc/schema.cpp", "csrc/cpu/*.cpp"))]
    torch = find_torch()
    reason = why_no_cuda(torch) if torch else "no torch yet: CPU only"
    if reason is None:
        parts.append(Extension("bunit_kernels._C_cuda", sources("csrc/cuda/*.cu")))
    elif os.environ.get("BUNIT_CUDA") == "1":
        raise SystemExit(f"BUNIT_CUDA=1, but {reason}")
    else:
        print(f"bunit_kernels: {reason}", file=sys.stderr)
    return parts


if __name__ == "__main__":
    building = any(word in sys.argv for word in ("build_ext", "bdist_wheel", "editable_wheel"))
    setup(
        # Asking for metadata needs neither torch nor a compiler.
        ext_modules=extensions() if building else [Extension("bunit_kernels._C_cpu", [])],
        cmdclass={"bdist_wheel": AnyPythonWheel, "build_ext": BuildStable},
    )
