"""What a person sees while a network trains."""

from __future__ import annotations

import sys

from .errors import require

_LINES = 10  # a network, where there is no terminal to draw a bar on


class Progress:
    """A bar over all steps of one network on a terminal, a few lines elsewhere.

    Raises:
        UserError: tqdm is not installed.
    """

    def __init__(self, name: str, epochs: int, done: int, steps: int, quiet: bool):
        tqdm = require("tqdm", "tqdm", "the progress bar").tqdm
        self._terminal = sys.stderr.isatty()
        self._name, self._epochs, self._quiet = name, epochs, quiet
        self._bar = tqdm(
            desc=name,
            total=epochs * steps,
            initial=done * steps,
            unit="step",
            disable=quiet or not self._terminal,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def step(self) -> None:
        self._bar.update()

    def epoch(self, figures: dict) -> None:
        """Shows the figures of an epoch that ended."""
        number = figures["epoch"]
        text = (
            f"epoch {number}/{self._epochs}, loss {figures['train_loss']:.4f}, "
            f"test {figures['test_accuracy']:.2%}"
        )
        self._bar.set_postfix_str(text)
        every = -(-self._epochs // _LINES)
        if not self._terminal and not self._quiet and number % every == 0:
            print(f"{self._name}: {text}", file=sys.stderr, flush=True)
