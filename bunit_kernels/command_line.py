"""What the programs of this package have in common (``python -m bunit_kernels.train``, ...)."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable

#: Exit code of a program that nobody reads any more: 128 + SIGPIPE, as shells print it.
NOBODY_READS = 141


def run(program: str, main: Callable[[], int | None]) -> int:
    """Runs ``main`` and returns its exit code. Where the reader of its output is gone (``| head``),
    the program ends as others do: at once, without a word, with ``NOBODY_READS``.

    ``main`` lets ``BrokenPipeError`` through; one of another pipe is a message and code 1.
    """
    try:
        try:
            code = main()
        except SystemExit as stop:  # argparse, after --help
            code = stop.code
        sys.stdout.flush()  # here, where the error can still be met
    except BrokenPipeError as error:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:
            print(f"{program}: {error}", file=sys.stderr)
            return 1
        for stream in unread:  # what is left in it goes nowhere when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return NOBODY_READS
    return code or 0


def _is_unread(stream) -> bool:
    """Whether ``stream`` is a pipe that nobody reads."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, no file, no such call
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return False
