"""Figures of a run for TensorBoard: ``tensorboard --logdir FOLDER``."""

from __future__ import annotations

from pathlib import Path

from .errors import require


class Log:
    """One network's curves, a point an epoch; does nothing where none are asked for.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, wanted: bool, done: int):
        self._writer = None
        if wanted:
            require("tensorboard", "tensorboard", "--tensorboard", extra="tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            # Points past the checkpoint that training goes on from are dropped.
            self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def epoch(self, figures: dict, images: int) -> None:
        """``figures`` of an epoch in which ``images`` were seen."""
        if self._writer is None:
            return
        values = {key: value for key, value in figures.items() if key != "epoch"}
        values["images_per_second"] = images / figures["seconds"]
        for key, value in values.items():
            self._writer.add_scalar(key, value, figures["epoch"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
