"""The command line of ``python -m bunit_kernels.report``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..train.errors import UserError, require
from .build import PAGE, build_report, write_report
from .runs import read_runs

PROGRAM = "python -m bunit_kernels.report"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 where writing failed, 2 where the input
    cannot be used."""
    options = make_parser().parse_args(argv)
    try:
        for module in ("jinja2", "matplotlib"):
            require(module, module, "the report", extra="report")
        runs = read_runs(options.runs)
        folder = make_folder(options.out)
        files = build_report(runs)
        write_report(files, folder)
    except UserError as error:
        return _fail(error, 2)
    except OSError as error:  # a full disk, a folder that vanished
        return _fail(error, 1)
    print(f"{folder / PAGE}, and {len(files) - 1} plots beside it")
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Makes one HTML page and PNG plots of runs of python -m bunit_kernels.train, "
        "with the published results of BUnit-Net and of pruning methods beside them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="the --out of a training run"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report"),
        metavar="FOLDER",
        help="where the page and the plots go; files of an older report there are replaced",
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def make_folder(folder: Path) -> Path:
    """Makes the report's folder if it is not there.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # os.access does not see every reason
            pass
    except OSError as error:
        raise UserError(f"cannot write the report into {folder}: {error}") from error
    return folder


def _fail(message: object, code: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code
