"""A run from its settings to its table."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F

from .. import backends
from ..models import create_model, dense_counterpart
from . import report as reporting
from .checkpoint import check_data, check_model, load_checkpoint, load_weights, save_checkpoint
from .errors import UserError, first_line, require
from .feed import make_feed
from .files import write_json
from .loop import Learner
from .prepare import make_folder, prepare_device, read_data
from .progress import Progress
from .settings import Settings

METRICS = "metrics.json"


class Run:
    """A network, and its dense counterpart where it has one, trained on the same images.

    Everything that can be wrong with the settings, the data and the files is found out here,
    before any training.

    Args:
        folder: where checkpoints and metrics go; ``None`` for ``runs/<model>-<data>-<time>``.
        resume: continues the run in ``folder``.
        checkpoint: weights that the (first) network starts from.

    Raises:
        UserError: see the messages.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path | None = None,
        resume: bool = False,
        checkpoint: Path | None = None,
        quiet: bool = False,
    ):
        self.settings, self.quiet = settings, quiet
        require("tqdm", "tqdm", "the progress bar")  # said now rather than after the data is read
        self.device = prepare_device(settings)
        self.data = read_data(settings)
        self.feed = make_feed(self.data, settings, self.device)
        names = [settings.model]
        dense = dense_counterpart(settings.model)
        if settings.dense and dense is not None:
            names.append(dense)
        self.learners = [self._learner(name) for name in names]
        if checkpoint is not None:
            content = load_checkpoint(checkpoint)
            check_model(content, checkpoint, settings.model)
            load_weights(self.learners[0].model, content, checkpoint)
        self.report = reporting.run_report(
            self.data, settings, self.device, backends.describe(self.device)
        )
        for learner in self.learners:
            self.report["networks"][learner.name] = self._try_out(learner)
        self.folder = make_folder(folder, settings, resume)
        for learner in self.learners:
            if resume:
                self._restore(learner)
            self._update_figures(learner)
        write_json(self.folder / METRICS, self.report)

    def train(self) -> None:
        """Trains all networks, measures their times, writes and prints the figures."""
        for learner in self.learners:
            self._fit(learner)
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
        write_json(self.folder / METRICS, self.report)
        print(self.data.describe())
        print(f"backend: {self.report['backend']}, device: {self.report['versions']['device']}")
        print(f"batches of {self.feed.batch_size}; accuracy after the last epoch")
        print()
        print(reporting.table(self.report, names))
        print()
        if comparison is not None:
            print("TCA and TSA by our formulas (bunit_kernels.metrics), not the paper's")
        print(f"checkpoints and {METRICS}: {self.folder}")

    def _arguments(self) -> dict:
        return {
            "num_classes": len(self.data.classes),
            "in_channels": self.data.shape[0],
            "image_size": list(self.data.shape[1:]),
            **self.settings.model_arg,
        }

    def _learner(self, name: str) -> Learner:
        torch.manual_seed(self.settings.seed)
        try:
            model = create_model(name, **self._arguments())
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error
        return Learner(name, model, self.settings, self.device)

    def _try_out(self, learner: Learner) -> dict[str, int]:
        """Counts the network, and takes a step on a copy of it (a step changes weights and running
        statistics), so that what cannot run here is said before training."""
        x, labels = self.feed.sample(min(2, self.feed.batch_size))
        trial = copy.deepcopy(learner.model).train()
        try:
            counts = reporting.sizes(learner.model, self.data.shape)
            with learner.autocast():
                logits = trial(x)
            F.cross_entropy(logits.float(), labels).backward()
            if self.settings.compile:
                learner.predict(x)
        # What a backend, a compiler or a user's model raises is of no one kind.
        except Exception as error:
            raise UserError(
                f"model {learner.name!r} cannot be trained here: {first_line(error)}"
            ) from error
        return counts

    def _fit(self, learner: Learner) -> None:
        epochs, done = self.settings.epochs, len(learner.history)
        if not learner.history:
            self._save(learner, best=False)  # something to resume from, however soon one stops it
        with Progress(learner.name, epochs, done, self.feed.steps, self.quiet) as progress:
            while len(learner.history) < epochs:
                figures = learner.train_epoch(self.feed, progress.step)
                best = max((f["test_accuracy"] for f in learner.history), default=-1.0)
                learner.history.append(figures)
                self._save(learner, best=figures["test_accuracy"] > best)
                self._update_figures(learner)
                write_json(self.folder / METRICS, self.report)
                progress.epoch(figures)

    def _save(self, learner: Learner, best: bool) -> None:
        content = {
            "model": learner.name,
            "arguments": self._arguments(),
            "state": dict(learner.model.state_dict()),
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "history": learner.history,
            "settings": self.settings.to_dict(),
            "shape": list(self.data.shape),
            "classes": list(self.data.classes),
            "mean": self.feed.mean,
            "deviation": self.feed.deviation,
            "versions": self.report["versions"],
        }
        if best:
            save_checkpoint(self.folder / f"{learner.name}_best.pt", content)
        save_checkpoint(self.folder / f"{learner.name}_last.pt", content)

    def _restore(self, learner: Learner) -> None:
        path = self.folder / f"{learner.name}_last.pt"
        if not path.exists():
            return  # the run stopped before this network's first epoch ended
        content = load_checkpoint(path)
        check_model(content, path, learner.name)
        check_data(content, path, self.data)
        load_weights(learner.model, content, path)
        learner.optimizer.load_state_dict(content["optimizer"])
        learner.scaler.load_state_dict(content["scaler"])
        learner.history = content["history"]

    def _update_figures(self, learner: Learner) -> None:
        figures = self.report["networks"][learner.name]
        accuracies = [epoch["test_accuracy"] for epoch in learner.history]
        figures["accuracy"] = accuracies[-1] if accuracies else None
        # Chosen on the test images, so it flatters: the table prints the last epoch's.
        figures["best_accuracy"] = max(accuracies, default=None)
        figures["history"] = learner.history
