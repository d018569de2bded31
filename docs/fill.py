"""``python docs/fill.py``: puts the tables of results into README.md and docs/results.md.

A table stands between ``<!-- made by: COMMAND -->`` and ``<!-- end -->`` and is what the command
prints, run in the repository's root, so that it is always that of the results file named there.
``--check`` changes nothing and fails where a table is another.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ("results", "paper_networks", "reproducing_the_paper")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in DOCS))
BLOCK = re.compile(r"(<!-- made by: python (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """``text`` with every table made anew.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    return BLOCK.sub(lambda m: f"{m[1]}\n{_output(m[2])}\n{m[3]}", text)


def _output(command: str) -> str:
    run = [sys.executable, *shlex.split(command)]
    done = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Fills in the tables of README and docs.")
    parser.add_argument("--check", action="store_true", help="only look whether they are right")
    check = parser.parse_args().check
    stale = [page for page in PAGES if filled(page.read_text()) != page.read_text()]
    for page in stale:
        if not check:
            page.write_text(filled(page.read_text()))
        print(f"{page.relative_to(ROOT)}: {'tables are out of date' if check else 'filled in'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
