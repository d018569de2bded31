"""What setup.py decides before it compiles: which parts, for which GPUs, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, on a machine with nvcc, a CUDA build of torch and no GPU."""
    spec = importlib.util.spec_from_file_location("bunit_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bunit_setup", module)
    spec.loader.exec_module(module)
    for name in ("BUNIT_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "why_no_cuda", lambda torch: None)
    monkeypatch.setattr(module, "seen_architectures", list)
    return module


def script(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("asked", "listed", "seen", "architectures", "said"),
    [
        ("", "", [], None, "BUNIT_CUDA=1"),
        ("1", "", [], "8.0;9.0;10.0+PTX", "BUNIT_CUDA=1"),
        ("", "9.0", [], "9.0", "TORCH_CUDA_ARCH_LIST"),
        ("", "", ["9.0"], "9.0", "the GPU here"),
        ("", "", ["8.6", "9.0"], "8.6;9.0", "the GPU here"),
        ("1", "8.0", ["9.0"], "8.0", "TORCH_CUDA_ARCH_LIST"),
        ("0", "8.0", ["9.0"], None, "BUNIT_CUDA=0"),
    ],
)
def test_which_parts_are_built(build, monkeypatch, asked, listed, seen, architectures, said):
    monkeypatch.setenv("BUNIT_CUDA", asked)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    monkeypatch.setattr(build, "seen_architectures", lambda: seen)
    choice = build.choose_cuda(Path("torch"))
    assert choice.architectures == architectures
    assert said in choice.reason


def test_without_nvcc_the_cpu_part_is_built_alone(build, monkeypatch):
    monkeypatch.setattr(build, "why_no_cuda", lambda torch: "no nvcc was found: install it")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    choice = build.choose_cuda(Path("torch"))
    assert choice.architectures is None and "no nvcc was found: install it" in choice.reason
    build.choose_cuda.cache_clear()
    monkeypatch.setenv("BUNIT_CUDA", "1")
    with pytest.raises(SystemExit, match="BUNIT_CUDA=1, but no nvcc was found: install it"):
        build.choose_cuda(Path("torch"))


def test_bad_values_of_the_variable_are_refused(build, monkeypatch):
    monkeypatch.setenv("BUNIT_CUDA", "yes")
    with pytest.raises(SystemExit, match="BUNIT_CUDA='yes': expected 0, 1 or nothing"):
        build.choose_cuda(Path("torch"))


def toolkit(folder: Path, release: str) -> Path:
    script(
        folder,
        "bin/nvcc",
        f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V";; '
        "*) echo compute_80; echo compute_90;; esac",
    )
    (folder / "lib64").mkdir()
    (folder / "lib64" / "libcudart.so").touch()
    return folder


def test_an_nvcc_that_is_too_old_is_named(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("bunit_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bunit_setup", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path, "11.8")))
    assert "is of CUDA 11.8, too old: install CUDA 12.0" in module.why_no_cuda(tmp_path)


def test_architectures_that_nvcc_does_not_know_are_named(build, tmp_path):
    folder = toolkit(tmp_path, "12.1")
    assert build.cuda_flags("8.0;9.0+PTX", folder) == [
        "-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]"
    ]
    assert build.cuda_flags("9.0a 8.0", folder) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_80,code=[sm_80]",
    ]
    assert build.cuda_flags("9.0a+PTX", folder) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    assert build.architecture_numbers("8.0;9.0a;10.0+PTX") == "800,900,1000"
    with pytest.raises(
        SystemExit, match="CUDA 12.1 .* does not know architecture 10.0, only 8.0, 9"
    ):
        build.cuda_flags("10.0", folder)
    with pytest.raises(SystemExit, match="'sm_90' is not like '9.0'"):
        build.cuda_flags("sm_90", folder)


def test_compilers_that_are_missing_or_too_old_are_named(build, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler .*none.*install g"):
        build.find_compiler()
    old = script(tmp_path, "old", "echo 'unrecognized option -std=c++20' >&2; exit 1")
    monkeypatch.setenv("CXX", f"{old} -O1")
    with pytest.raises(SystemExit, match="old -O1 does not take C.*unrecognized option.*install g"):
        build.find_compiler()


def test_a_torch_that_is_too_old_is_named(build, tmp_path, monkeypatch):
    (tmp_path / "torch" / "include").mkdir(parents=True)
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.5.1+cpu'\n")
    monkeypatch.setattr(build.sysconfig, "get_paths", lambda: {"purelib": "", "platlib": ""})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert build.find_torch() is None
    assert f"found torch 2.5 in {tmp_path}, expected 2.11 or newer: pip" in build.why_no_torch()
    assert build._torch_requirement() == ["torch>=2.11"]
    monkeypatch.setattr(sys, "path", [])
    assert "found none" in build.why_no_torch()


def test_a_full_disk_is_told_before_anything_is_compiled(build, tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    with pytest.raises(SystemExit, match="has 5 MiB of free disk space, compiling takes 300"):
        build.check_space(tmp_path)


def test_every_source_has_an_object_of_its_own(build):
    """Several folders hold files of one name."""
    names = [Path(source).name for source in build.cpu_part().sources]
    assert len(set(names)) < len(names), "no two names are equal: this tests nothing"
    objects = [Path(source).relative_to("csrc") for source in build.cpu_part().sources]
    assert len(set(objects)) == len(objects)


def test_what_is_refused_is_one_line(tmp_path):
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    (copy / "bunit_kernels").mkdir()
    shutil.copy(ROOT / "bunit_kernels" / "__init__.py", copy / "bunit_kernels")  # has the version
    environment = {**os.environ, "CXX": "no-such-compiler", "BUNIT_CUDA": "0"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "no C++ compiler (no-such-compiler" in done.stderr.splitlines()[-1]


def test_progress_is_told_every_ten_seconds(build, monkeypatch, tmp_path, capfd):
    ninja = script(tmp_path, "ninja", "for i in 1 2 3; do echo [$i/3] compiling; done; exit 3")
    clock = iter((0, 4, 11, 11, 12))  # at the start, then a line each, and where one is told
    told = []
    monkeypatch.setattr(build, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(build, "tell", told.append)
    assert build.run_with_progress([str(ninja)]) == 3
    assert told == ["2 of 3"]
    assert capfd.readouterr().out.splitlines()[-1] == "[3/3] compiling"
