"""What a person sees while a network trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from .errors import require

_LINES = 10  # a network, where there is no terminal to draw a bar on
_EVERY = 0.5  # seconds between looks at the figures, which on a GPU wait for the device


class Progress:
    """A bar over all images of one network on a terminal, a few lines elsewhere.

    Args:
        done: images that were seen before, in a run that goes on.
        total: images of all epochs.
        running: gives (mean loss, accuracy) of the current epoch so far.

    Raises:
        UserError: tqdm is not installed.
    """

    def __init__(
        self, name: str, epochs: int, done: int, total: int, quiet: bool,
        running: Callable[[], tuple[float, float]],
    ):  # fmt: skip
        tqdm = require("tqdm", "tqdm", "the progress bar").tqdm
        self._terminal = sys.stderr.isatty() and not quiet
        self._name, self._epochs, self._quiet = name, epochs, quiet
        self._running, self._shown, self._test = running, time.monotonic(), ""
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=done,
            unit="image",
            unit_scale=True,
            disable=not self._terminal,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def step(self, images: int) -> None:
        """``images`` more were seen."""
        now = time.monotonic()
        if self._terminal and now - self._shown > _EVERY:
            self._shown = now
            loss, accuracy = self._running()
            self._bar.set_postfix_str(f"loss {loss:.4f}, {accuracy:.2%}{self._test}", refresh=False)
        self._bar.update(images)

    def epoch(self, figures: dict) -> None:
        """Shows the figures of an epoch that ended."""
        number = figures["epoch"]
        self._test = f", test {figures['test_accuracy']:.2%}"
        text = f"epoch {number}/{self._epochs}, loss {figures['train_loss']:.4f}{self._test}"
        self._bar.set_postfix_str(text)
        every = -(-self._epochs // _LINES)
        if not self._terminal and not self._quiet and number % every == 0:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
