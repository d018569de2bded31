"""``python -m bunit_kernels.train.data PATH``: reads a data set whole and says what is in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from ...command_line import run
from ..errors import TrainingError, UserError
from . import load_data
from .images import ImageData
from .stream import decoded_batches

PROGRAM = "python -m bunit_kernels.train.data"
_BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 where the data cannot be used."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Reads every image of a data set, names the first that is broken, and prints "
        "what the set holds.",
    )
    parser.add_argument("path", help="as --data of python -m bunit_kernels.train")
    parser.add_argument("--image-size", type=int, metavar="N", help="makes all images N x N pixels")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, help="read a folder image by image"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="that decode; one a core if left")
    options = parser.parse_args(argv)
    try:
        data = load_data(options.path, options.image_size, options.workers, options.stream)
        if data.streamed:
            _decode_all(data, options.workers or torch.get_num_threads())
    except (UserError, TrainingError) as error:
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


def _decode_all(data: ImageData, workers: int) -> None:
    for part in (data.train, data.test):
        batches = torch.arange(len(part)).split(_BATCH)
        for _ in decoded_batches(part, batches, seed=None, workers=workers, pinned=False):
            pass


if __name__ == "__main__":
    raise SystemExit(run(PROGRAM, main))
