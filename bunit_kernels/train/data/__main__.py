"""``python -m bunit_kernels.train.data PATH``: reads a data set whole and says what is in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from ...command_line import run
from ..errors import UserError
from . import load_data

PROGRAM = "python -m bunit_kernels.train.data"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 where the data cannot be used."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Reads every image of a data set, and prints what the set holds, or which "
        "are broken: how many, and the first ten.",
    )
    parser.add_argument("path", help="as --data of python -m bunit_kernels.train")
    parser.add_argument("--image-size", type=int, metavar="N", help="makes all images N x N pixels")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, help="read a folder image by image"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="that decode; one a core if left")
    options = parser.parse_args(argv)
    try:
        data = load_data(
            options.path, options.image_size, options.workers, options.stream, check=True
        )
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    print(data.describe())
    for name, part in (("training", data.train), ("test", data.test)):
        counts = torch.bincount(part.labels, minlength=len(data.classes))
        few, many = int(counts.argmin()), int(counts.argmax())
        print(
            f"{name} images of a class: from {counts[few]} ({data.classes[few]}) to {counts[many]} "
            f"({data.classes[many]})"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(PROGRAM, main))
