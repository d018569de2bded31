"""A run from its settings to its table."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from .. import backends
from ..models import create_model, dense_counterpart
from . import report as reporting
from .checkpoint import (
    best_weights,
    check_data,
    check_model,
    load_checkpoint,
    save_checkpoint,
    save_weights,
)
from .distill import load_teacher
from .distributed import Processes
from .errors import TimeUp, UserError, first_line, require
from .feed import make_feed
from .files import write_json
from .loop import Learner
from .prepare import make_folder, read_data
from .progress import Progress
from .recipes import describe_recipe
from .settings import Settings
from .tensorboard import Log

METRICS = "metrics.json"


class Run:
    """A network, and its dense counterpart where it has one, trained on the same images.

    Everything that can be wrong with the settings, the data and the files is found out here,
    before any training.

    Args:
        device: where to train.
        folder: where checkpoints and metrics go; ``None`` for ``runs/<model>-<data>-<time>``.
        resume: continues the run in ``folder``.
        checkpoint: weights that the (first) network starts from.
        processes: this process among those that train together; they are connected already.

    Raises:
        UserError: see the messages.
    """

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        folder: Path | None = None,
        resume: bool = False,
        checkpoint: Path | None = None,
        quiet: bool = False,
        processes: Processes | None = None,
    ):
        self.settings, self.device = settings, device
        self.processes = processes or Processes()
        self.quiet = quiet or not self.processes.first
        require("tqdm", "tqdm", "the progress bar")  # said now rather than after the data is read
        require("safetensors", "safetensors", "the file of final weights")
        self.data = read_data(settings)
        self.feed = make_feed(
            self.data, settings, device, rank=self.processes.rank, world=self.processes.world
        )
        teacher = load_teacher(settings, self.data, self.feed, device)
        self.learners = [self._learner(settings.model, teacher)]
        dense = dense_counterpart(settings.model)
        if settings.dense and dense is not None:
            self.learners.append(self._learner(dense, None))
        if checkpoint is not None:
            content = load_checkpoint(checkpoint)
            check_model(content, checkpoint, settings.model)
            self.learners[0].start_from(best_weights(content), checkpoint)
        self.report = reporting.run_report(
            self.data, settings, device, backends.describe(device), self.processes.world
        )
        for learner in self.learners:
            self.report["networks"][learner.name] = self._try_out(learner)
        self.processes.wait()  # nobody looks for files that the first is about to make
        self.folder = make_folder(folder, settings, resume or not self.processes.first)
        for learner in self.learners:
            if resume:
                self._restore(learner)
            self._update_figures(learner)
        self._write_report()

    def train(self, max_minutes: float | None = None) -> None:
        """Trains all networks, measures their times, writes and prints the figures.

        Raises:
            TimeUp: ``max_minutes`` went by before all networks were trained. A checkpoint has been
                written that ``resume`` goes on from.
        """
        start = time.monotonic()

        def time_up() -> bool:
            if max_minutes is None:
                return False
            over = time.monotonic() - start >= 60 * max_minutes
            return self.processes.agree(over, self.device)

        if self.processes.first and self.report["recipe"] is not None:
            print(describe_recipe(self.report["recipe"]), flush=True)
        for learner in self.learners:
            self._fit(learner, time_up)
        self.processes.wait()
        for key, measure in (
            ("training_step_seconds", reporting.time_training),
            ("inference_seconds", reporting.time_inference),
        ):
            for name, seconds in measure(self.learners, self.feed).items():
                self.report["networks"][name][key] = seconds
        names = [learner.name for learner in self.learners]
        comparison = reporting.comparison(self.report, names)
        if comparison is not None:
            self.report["comparison"] = reporting.comparison_dict(comparison)
        self._write_report()
        if self.processes.first:
            self._print(names)

    def _print(self, names: list[str]) -> None:
        print(self.data.describe())
        print(f"backend: {self.report['backend']}, device: {self.report['versions']['device']}")
        several = f" in each of {self.processes.world} processes" * (self.processes.world > 1)
        print(f"batches of {self.feed.batch_size}{several}; accuracy after the last epoch")
        print()
        print(reporting.table(self.report, names))
        print()
        print(f"checkpoints and {METRICS}: {self.folder}")

    def _write_report(self) -> None:
        if self.processes.first:
            write_json(self.folder / METRICS, self.report)

    def _arguments(self) -> dict:
        return {
            "num_classes": len(self.data.classes),
            "in_channels": self.data.shape[0],
            "image_size": list(self.data.shape[1:]),
            **self.settings.model_arg,
        }

    def _learner(self, name: str, teacher) -> Learner:
        torch.manual_seed(self.settings.seed)
        try:
            model = create_model(name, **self._arguments())
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        return Learner(name, model, self.settings, self.device, self.processes, teacher)

    def _try_out(self, learner: Learner) -> dict[str, int]:
        """Counts the network, and takes a step on a copy of it (a step changes weights and running
        statistics), so that what cannot run here is said before training."""
        x, labels = self.feed.sample(torch.arange(min(2, self.feed.batch_size)))
        trial = copy.deepcopy(learner.model).train()
        try:
            counts = reporting.sizes(learner.model, self.data.shape)
            with learner.autocast():
                logits = trial(x)
            F.cross_entropy(logits.float(), labels).backward()
            if learner.teacher is not None:
                learner.teacher.loss(x, logits.detach().float(), logits.new_zeros(()))
            if self.settings.compile:
                learner.predict(x)
        # What a backend, a compiler or a user's model raises is of no one kind.
        except Exception as error:
            raise UserError(
                f"model {learner.name!r} cannot be trained here: {first_line(error)}"
            ) from error
        return counts

    def _fit(self, learner: Learner, time_up: Callable[[], bool]) -> None:
        epochs, done = self.settings.epochs, len(learner.history)
        if not learner.history and not learner.batches:
            self._save(learner)  # something to resume from, however soon one stops it
        batch = self.feed.batch_size * self.processes.world
        images = self.feed.steps * batch
        log = Log(
            self.folder / "tensorboard" / learner.name,
            self.settings.tensorboard and self.processes.first,
            done,
        )
        progress = Progress(
            learner.name,
            epochs,
            done * images + learner.batches * batch,
            epochs * images,
            self.quiet,
            lambda: learner.running(everyone=False),
        )
        with progress:
            while len(learner.history) < epochs:
                if time_up():
                    raise TimeUp
                figures = learner.train_epoch(
                    self.feed, lambda: progress.step(batch), lambda: self._save(learner), time_up
                )
                best = max((f["test_accuracy"] for f in learner.history), default=-1.0)
                learner.history.append(figures)
                self._save(learner, best=figures["test_accuracy"] > best)
                self._update_figures(learner)
                self._write_report()
                log.epoch(figures, images)
                progress.epoch(figures)
        log.close()
        if self.processes.first:
            network = learner.model if learner.average is None else learner.average.module
            path = self.folder / f"{learner.name}.safetensors"
            save_weights(path, network.state_dict(), self._description(learner))

    def _description(self, learner: Learner) -> dict:
        """What it takes to build a network and to feed it."""
        return {
            "model": learner.name,
            "arguments": self._arguments(),
            "shape": list(self.data.shape),
            "classes": list(self.data.classes),
            "mean": self.feed.mean,
            "deviation": self.feed.deviation,
        }

    def _content(self, learner: Learner) -> dict:
        """What a checkpoint holds. All processes have to ask for it, for the sums over them."""
        average = learner.average
        return self._description(learner) | {
            "state": dict(learner.model.state_dict()),
            "average": None if average is None else dict(average.module.state_dict()),
            "averaged": 0 if average is None else int(average.n_averaged),
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "history": learner.history,
            "batches": learner.batches,
            "totals": self.processes.total(learner.totals.clone()).cpu(),
            "settings": self.settings.to_dict(),
            "versions": self.report["versions"],
        }

    def _save(self, learner: Learner, best: bool = False) -> None:
        content = self._content(learner)
        if not self.processes.first:
            return
        if best:
            save_checkpoint(self.folder / f"{learner.name}_best.pt", content)
        save_checkpoint(self.folder / f"{learner.name}_last.pt", content)

    def _restore(self, learner: Learner) -> None:
        path = self.folder / f"{learner.name}_last.pt"
        if not path.exists():
            return  # the run stopped before this network's first epoch began
        content = load_checkpoint(path)
        check_model(content, path, learner.name)
        check_data(content, path, self.data)
        world = content["versions"].get("processes", "1")
        if content["batches"] and world != str(self.processes.world):
            raise UserError(
                f"checkpoint {path} is from within an epoch of {world} processes; it cannot go on "
                f"with {self.processes.world}"
            )
        learner.restore(content, path)

    def _update_figures(self, learner: Learner) -> None:
        figures = self.report["networks"][learner.name]
        accuracies = [epoch["test_accuracy"] for epoch in learner.history]
        figures["accuracy"] = accuracies[-1] if accuracies else None
        # Chosen on the test images, so it flatters: the table prints the last epoch's.
        figures["best_accuracy"] = max(accuracies, default=None)
        figures["history"] = learner.history
