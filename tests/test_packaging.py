"""What is released: a source distribution that builds, and a wheel that needs no compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import bunit_kernels

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = re.sub(r"\W", "_", sysconfig.get_platform())

USE = """
import torch
from bunit_kernels import StackedConv2d, backend, backends
layer = StackedConv2d("2-4-2", num_units=3).eval()
x = torch.randn(2, 6, 9, 9)
with backend("reference"):
    expected = layer(x)
assert "cpp" in backends.available("cpu"), backends.why_not("cpp")
with backend("cpp"):
    torch.testing.assert_close(layer(x), expected)
print(backends.__file__)
"""


def test_versions_agree():
    for name, pattern in (("CITATION.cff", "^version: (.+)"),):
        found = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert found[1] == bunit_kernels.__version__, name
    assert f"## {bunit_kernels.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def run(*command, **environment) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    options = ("--no-isolation", "--skip-dependency-check", "--outdir", out)
    run(sys.executable, "-m", "build", kind, *options, source, BUNIT_CUDA="0")
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def files() -> list[str]:
    """What is, or would be, under version control."""
    listed = ("ls-files", "--cached", "--others", "--exclude-standard")
    try:
        names = run("git", "-C", ROOT, *listed).splitlines()
    except (AssertionError, OSError):
        pytest.skip("needs a git checkout, to know which files are the project's")
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def sdist(files, tmp_path_factory) -> Path:
    """Of a tree in which an earlier build has left its objects."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in files:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    (folder / "tree" / "bunit_kernels" / "_C_stray.so").touch()
    return build("--sdist", folder / "tree", folder / "out")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """From the unpacked source distribution; there too, an earlier build has left something."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    built = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    stray = tree / built / "bunit_kernels" / "stray.py"
    stray.parent.mkdir(parents=True)
    stray.touch()
    made = build("--wheel", tree, folder / "out")
    assert not stray.exists(), "the test put its file where the build does not look"
    return made


@pytest.mark.thorough
def test_source_distribution_holds_the_project(sdist, files):
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2] for m in archive if m.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {m for m in members if ".egg-info/" in m}
    of_the_repository = {name for name in files if name.startswith((".ci/", ".git"))}
    assert members - made == set(files) - of_the_repository


@pytest.mark.thorough
def test_wheel_holds_the_package_and_its_object(wheel, files):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"bunit_kernels-{bunit_kernels.__version__}.dist-info/"
    package = {name for name in files if name.startswith("bunit_kernels/")}
    assert {n for n in names if not n.startswith(info)} == package | {"bunit_kernels/_C_cpu.so"}
    assert f"{info}licenses/LICENSE" in names


@pytest.mark.thorough
def test_wheel_is_for_every_python(wheel):
    """As its tag says: nothing of Python's C API is asked for."""
    version = bunit_kernels.__version__
    assert wheel.name == f"bunit_kernels-{version}-py3-none-{PLATFORM}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names_in_object = archive.read("bunit_kernels/_C_cpu.so").split(b"\0")
    assert any(name.startswith(b"aoti_torch_") for name in names_in_object)
    # Names like PyList_New and _Py_Dealloc; machine code may hold the letters alone by chance.
    assert not [name for name in names_in_object if re.fullmatch(rb"_?Py[A-Za-z]*_\w+", name)]


@pytest.mark.thorough
def test_wheel_installs_and_runs_without_a_compiler(wheel, tmp_path):
    (tmp_path / "empty").mkdir()
    here = {"PATH": str(tmp_path / "empty"), "PYTHONPATH": str(tmp_path / "site")}
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index")
    run(*pip, "--target", tmp_path / "site", wheel, **here)
    (tmp_path / "use.py").write_text(USE)
    where = run(sys.executable, tmp_path / "use.py", **here)
    assert where.startswith(str(tmp_path / "site"))
