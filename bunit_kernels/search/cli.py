"""The command line of ``python -m bunit_kernels.search``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from .. import __version__
from ..models.tables import NORMAL
from ..train.augment import AUGMENTATIONS
from ..train.errors import TrainingError, UserError
from ..train.settings import option
from .report import RESULTS, read_results
from .search import Search
from .settings import CANDIDATES, SearchSettings

PROGRAM = "python -m bunit_kernels.search"
_DEFAULTS = SearchSettings()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 where training failed, 2 where the input
    cannot be used, 130 where it was interrupted."""
    try:
        return _run(parse(argv))
    except UserError as error:
        return _fail(error, 2)
    except TrainingError as error:
        return _fail(error, 1)
    except BrokenPipeError:  # for ``command_line.run``
        raise
    except OSError as error:  # a full disk, a folder that vanished
        return _fail(error, 1)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)


def _run(options: argparse.Namespace) -> int:
    try:
        settings = SearchSettings(
            **{f.name: getattr(options, f.name) for f in fields(SearchSettings)}
        )
    except TypeError as error:  # a number compared with what an edited file holds in its place
        raise UserError(f"the settings of that search are damaged: {error}") from error
    search = Search(settings, options.resume or options.out, options.quiet)
    try:
        search.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; continue with: {PROGRAM} --resume {search.folder}"
        ) from None
    return 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options; those not given come from the resumed search.

    Raises:
        UserError: the search cannot be read, or options contradict each other.
        SystemExit: an option does not parse (code 2).
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.resume is None:
        return options
    if options.out is not None:
        raise UserError("--resume goes on in its own folder: it takes no --out")
    saved = read_results(options.resume)
    if saved is None:
        raise UserError(f"{options.resume} holds no search: there is no {options.resume / RESULTS}")
    known = {f.name for f in fields(SearchSettings)}
    parser.set_defaults(**{k: value for k, value in saved["settings"].items() if k in known})
    return parser.parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Searches which blocks of a backbone are stacked layers, and of which units: "
        "tables within a budget are drawn and scored untrained, the best are trained for a few "
        "epochs. The same command goes on where a search was stopped, if --out is given. With no "
        "argument: bunit_resnet20 on scikit-learn's digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_search(parser.add_argument_group("what"))
    _add_training(parser.add_argument_group("on what, and how it is trained"))
    _add_files(parser.add_argument_group("files"))
    parser.add_argument("--quiet", action="store_true", default=False, help="no progress")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _option(group, name: str, help: str, **kwargs) -> None:
    """An option for the setting of the same name, with its default."""
    group.add_argument(option(name), default=getattr(_DEFAULTS, name), help=help, **kwargs)


def _add_search(group) -> None:
    _option(group, "model", "a backbone with a table of units, such as bunit_vgg16_bn")
    _option(
        group,
        "candidates",
        f"what a block may be: {NORMAL}, or a unit; without it those of {', '.join(CANDIDATES)} "
        "that fit",
        nargs="+",
        metavar="UNIT",
    )
    _option(
        group,
        "shuffle",
        "stacked layers shuffle their output channels, so that units of the next one see all",
        action=argparse.BooleanOptionalAction,
    )
    _option(group, "turns", "entries a stage, which its blocks take in turn", type=int, metavar="N")
    share = "the network's {} are at most this share of its dense counterpart's"
    _option(group, "max_flops", share.format("FLOPs"), type=float, metavar="SHARE")
    _option(group, "max_parameters", share.format("parameters"), type=float, metavar="SHARE")
    _option(group, "trials", "tables to draw", type=int, metavar="N")
    _option(group, "keep", "of them to train, those with the best score", type=int, metavar="N")
    _option(
        group,
        "dense",
        "train the dense counterpart too, as long as a table: TCA and TSA need its accuracy",
        action=argparse.BooleanOptionalAction,
    )
    _option(group, "score_images", "images the score is computed on", type=int, metavar="N")


def _add_training(group) -> None:
    _option(group, "data", "digits, synthetic, or a path, as in python -m bunit_kernels.train")
    _option(group, "image_size", "makes all images N x N pixels", type=int, metavar="N")
    _option(
        group,
        "augment",
        "variation of training images; auto: crop-flip for colour (streamed: resized-crop-flip), "
        "none for grey",
        choices=AUGMENTATIONS,
    )
    _option(group, "limit", "use at most N training images", type=int, metavar="N")
    _option(group, "epochs", "passes over the training images, of each kept table", type=int)
    _option(group, "batch_size", "images a step", type=int)
    _option(group, "lr", "learning rate of SGD; falls to 0 as half a cosine", type=float)
    _option(group, "seed", "of the draw, the weights, the order and the variation", type=int)
    _option(group, "device", "auto, cpu, cuda, cuda:1, ...")
    _option(
        group,
        "deterministic",
        "refuse operations that are not",
        action=argparse.BooleanOptionalAction,
    )
    _option(group, "threads", "of torch on the CPU", type=int, metavar="N")


def _add_files(group) -> None:
    group.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="of search.json and units.json; runs/MODEL-DATA-TIME where not given",
    )
    group.add_argument(
        "--resume",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="go on with the search in that folder, with its settings; --trials, --keep and "
        "--dense may be others",
    )


def _fail(message: object, code: int) -> int:
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return code
