"""What a person sees while candidates are counted and scored."""

from __future__ import annotations

import sys

from ..train.errors import require

_LINES = 10  # where there is no terminal to draw a bar on


class Bar:
    """A bar over ``total`` things on a terminal, a few lines elsewhere.

    Raises:
        UserError: tqdm is not installed.
    """

    def __init__(self, name: str, total: int, done: int, unit: str, quiet: bool):
        tqdm = require("tqdm", "tqdm", "the progress bar", "search").tqdm
        self._name, self._total, self._done = name, total, done
        self._lines = not quiet and not sys.stderr.isatty()
        self._bar = tqdm(
            desc=name, total=total, initial=done, unit=unit, disable=quiet or self._lines,
            dynamic_ncols=True,
        )  # fmt: skip

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def step(self, text: str = "") -> None:
        """One more is done; ``text`` says how it stands."""
        self._done += 1
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        if self._lines and self._done % -(-self._total // _LINES) == 0:
            line = f"{self._name}: {self._done}/{self._total}"
            print(f"{line}, {text}" if text else line, file=sys.stderr, flush=True)
