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
from .units_seen import UnitRequest, units_of_run

PROGRAM = "python -m bunit_kernels.report"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 where writing failed, 2 where the input
    cannot be used."""
    options = make_parser().parse_args(argv)
    try:
        for module in ("jinja2", "matplotlib"):
            require(module, module, "the report", extra="report")
        request = UnitRequest(
            images=tuple(options.feature_maps),
            layer=options.layer,
            dead=options.dead_units is not None,
            data=options.dead_units or None,
            threshold=options.dead_below,
        )
        runs = read_runs(options.runs)
        seen = request.images or request.dead
        units = [units_of_run(run, request) for run in runs] if seen else []
        folder = make_folder(options.out)
        files = build_report(runs, units)
        write_report(files, folder)
    except UserError as error:
        return _fail(error, 2)
    except BrokenPipeError:  # for ``command_line.run``
        raise
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
    _add_units(parser.add_argument_group("units of each run's compact network"))
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _add_units(group) -> None:
    group.add_argument(
        "--feature-maps",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="draw what each unit of a stacked layer makes of these images, of the size and colour "
        "that the network takes",
    )
    group.add_argument(
        "--layer", metavar="NAME", help="the layer that is drawn; without it the first stacked one"
    )
    group.add_argument(
        "--dead-units",
        nargs="?",
        const="",
        metavar="DATA",
        help="list units whose output is nearly constant over the run's test images, or over those "
        "of other data, as --data of the training program takes them; at most 2,000 of them",
    )
    group.add_argument(
        "--dead-below",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="a unit is dead whose variance is below this share of the mean of its layer's",
    )


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
