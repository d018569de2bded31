"""What README.md and docs say: their Python runs, their commands' options and files are there."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

sybil = pytest.importorskip("sybil", reason="pip install -e '.[test]'")
from sybil.parsers.markdown import PythonCodeBlockParser  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

API = ROOT / "docs" / "api.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FOLDERS = ("bench", "bunit_kernels", "csrc", "docs", "tests", ".ci")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\bpython\s+(-m\s+bunit_kernels[\w.]*|\w+/[\w/]+\.py)([^`\n|&)]*)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@every_page
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """In order and in one namespace; a comment ``<!-- invisible-code-block: python ... -->`` runs
    too, for names that a page takes for granted."""
    monkeypatch.chdir(tmp_path)
    for example in sybil.document.Document.parse(str(page), PythonCodeBlockParser()).examples():
        example.evaluate()


@every_page
def test_no_block_is_of_a_kind_that_nobody_checks(page):
    kinds = {kind for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= ({"py"} if page == API else {"bash", "python"})


@functools.cache
def help_of(*command: str) -> str:
    """In this process where the command is of the package: a new one loads torch once more."""
    if command[0] == "-m" and command[1].startswith("bunit_kernels"):
        with (
            mock.patch.dict(os.environ, COLUMNS="200"),
            mock.patch.object(sys, "argv", [command[1], "--help"]),
            contextlib.redirect_stdout(io.StringIO()) as said,
            contextlib.suppress(SystemExit),
        ):
            runpy.run_module(command[1], run_name="__main__")
        return said.getvalue()
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def options_named() -> list[tuple[tuple[str, ...], str]]:
    """Each command of the pages and an option that it is given."""
    named = set()
    for page in PAGES:
        for program, rest in COMMAND.findall(page.read_text()):
            named |= {(tuple(program.split()), o) for o in re.findall(r"(?<=\s)--[a-z-]+", rest)}
    return sorted(named)


def test_options_are_known():
    named = options_named()
    assert (("-m", "bunit_kernels.train"), "--resume") in named  # they are found
    unknown = [
        (command, option)
        for command, option in named
        if option != "--help" and not re.search(rf"{option}(?![\w-])", help_of(*command))
    ]
    assert not unknown


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = (heading.lower().replace(" ", "-") for heading in HEADING.findall(page.read_text()))
    return {re.sub(r"[^\w-]", "", title) for title in titles}


@every_page
def test_links_lead_somewhere(page):
    broken = []
    for target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


@every_page
def test_files_named_are_there(page):
    missing = []
    for text in re.findall(r"`([^`\n]+)`", page.read_text()):
        for word in text.split():
            if word.split("/")[0] in FOLDERS and re.fullmatch(r"[\w.*-]+(/[\w.*-]+)+/?", word):
                missing += [] if any(ROOT.glob(word.rstrip("/"))) else [word]
            elif re.fullmatch(r"(\w+/)+\w+\.py", word):  # beginning inside the package
                inside = any(ROOT.glob(word)) or any((ROOT / "bunit_kernels").glob(word))
                missing += [] if inside else [word]
    assert not missing


def test_api_reference_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    assert make_api.reference() == API.read_text(), "run python docs/make_api.py"


def test_tables_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, "docs/fill.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: python docs/fill.py"


def test_contributing_maps_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tops = [path for path in ROOT.iterdir() if path.name in FOLDERS]
    inner = [path for top in tops for path in top.iterdir() if path.is_dir()]
    folders = [path for path in (*tops, *inner) if "__pycache__" not in path.name]
    names = [path.relative_to(ROOT).as_posix() for path in folders]
    assert [name for name in names if f"`{name}" not in text] == []
