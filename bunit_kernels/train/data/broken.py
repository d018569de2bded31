"""Image files that cannot be read: all of them named at once, rather than one a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import numpy as np

from ..errors import UserError
from .decode import decode, read_header

_NAMED = 10


def run_all(pool: Executor, function: Callable, *arguments: Iterable) -> list:
    """``function`` of each image, as ``pool.map`` runs it.

    Raises:
        UserError: from some of them; it has the messages of the first ten and the count.
    """

    def attempt(*values):
        try:
            return function(*values), None
        except UserError as error:
            return None, str(error)

    done = list(pool.map(attempt, *arguments))
    errors = [error for _, error in done if error is not None]
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        more = f"\n  and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        named = "".join(f"\n  {error}" for error in errors[:_NAMED])
        raise UserError(f"{len(errors)} of {len(done)} images are broken:{named}{more}")
    return [result for result, _ in done]


def check_images(pool: Executor, paths: Iterable[str]) -> None:
    """Decodes each image whole, into a pixel.

    Raises:
        UserError: see ``run_all``.
    """
    run_all(pool, _check, paths)


def _check(path: str) -> None:
    read_header(path)
    decode(path, np.empty((3, 1, 1), np.uint8))
