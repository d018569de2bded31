"""A search from its settings to its table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..train.data import ImageData
from ..train.data.images import split_by_class
from ..train.errors import TrainingError, UserError, first_line, require
from ..train.feed import make_feed
from ..train.files import write_json
from ..train.loop import Learner
from ..train.prepare import make_folder, prepare_device, read_data
from ..train.progress import Progress
from ..train.report import versions
from . import report as reporting
from .progress import Bar
from .report import RESULTS, key_of
from .score import naswot
from .settings import SearchSettings
from .space import Cost, Space, UnitTable
from .study import Record, Study

UNITS = "units.json"
_JOURNAL = "study.log"
_HELD_OUT = 0.2  # of the training images of each class


def search(settings: SearchSettings, folder: Path | None = None, quiet: bool = False) -> dict:
    """Searches a table of units, see :class:`Search`; returns what its results file holds.

    ``result["units"]`` is the winner's table, which ``models.create_model(..., units=...)`` takes.
    """
    return Search(settings, folder, quiet).run()


class Search:
    """First many tables are drawn and scored untrained, then the best of them trained for a while.

    Accuracies are of one in five of the training images, which are held out, always the same ones;
    the test images are not looked at.

    The same settings give the same candidates, scores and accuracies on the same machine with the
    same versions, device and number of threads (on a GPU with ``deterministic`` alone), however
    often the search was stopped, or killed, and gone on with: a draw or a training that was cut
    short is made again from its start.

    Everything that can be wrong with the settings, the data and the files is found out here,
    before the folder is made.

    Args:
        folder: of the results; one that holds a search of the same settings is gone on with.
            ``None`` for ``runs/<model>-<data>-<time>``.

    Raises:
        UserError: see the messages.
    """

    def __init__(self, settings: SearchSettings, folder: Path | None = None, quiet: bool = False):
        self.settings, self.quiet = settings, quiet
        optuna = require("optuna", "Optuna", "a search", "search")
        require("tqdm", "tqdm", "the progress bar", "search")
        saved = None if folder is None else reporting.read_results(folder)
        self.is_new = saved is None
        if self.is_new and folder is not None and (folder / _JOURNAL).exists():
            raise UserError(
                f"{folder} holds {_JOURNAL} of a search without its {RESULTS}: choose another --out"
            )
        training = settings.training()
        self.device = prepare_device(training)
        self.data = _held_out(read_data(training))
        self.trained: dict[str, dict] = {}
        self.dense = reporting.UNTRAINED
        if saved is not None:
            reporting.check_same_search(saved, settings, self.data, folder)
            self.trained = reporting.trained_before(saved, folder / RESULTS)
            self.dense = reporting.dense_before(saved)
        self.feed = make_feed(self.data, training, self.device)
        self.images = self._score_images()
        self.space = Space(settings, self.data.shape, len(self.data.classes))
        self.budget = Cost(
            int(settings.max_parameters * self.space.dense.parameters),
            int(settings.max_flops * self.space.dense.flops),
        )
        self.smallest = self._find_smallest()
        self._try_out(self.space.table(self.smallest))
        if settings.dense:
            self._try_out(None)
        self.versions = versions(self.device) | {"optuna": optuna.__version__}
        self.folder = make_folder(folder, training, resume=not self.is_new)

    def run(self) -> dict:
        """Draws, scores and trains what is not done yet, writes and prints the figures.

        Raises:
            UserError: another process works in the folder, or the study in it is damaged.
            TrainingError: no candidate's loss stayed finite.
        """
        with self._locked():
            if self.is_new:  # the journal is never there without the settings it is of
                self._write([], finished=False)
            study = Study(
                self.folder / _JOURNAL, self.space, self.budget, self.smallest, self.settings.seed
            )
            self._draw(study)
            records = study.records[: self.settings.trials]
            shortlist = self._shortlist(records)
            for number, units in enumerate(shortlist, 1):
                if key_of(units) not in self.trained:
                    name = f"candidate {number} of {len(shortlist)}"
                    self.trained[key_of(units)] = self._train(name, units)
                    self._write(records, finished=False)
            self._train_dense()
            results = self._write(records, finished=True)
            if results["units"] is None:
                reasons = {entry["failure"] for entry in self.trained.values()}
                raise TrainingError(f"no candidate could be trained: {'; '.join(sorted(reasons))}")
            write_json(self.folder / UNITS, results["units"])
        self._print(results)
        return results

    def _find_smallest(self) -> dict[str, str]:
        """The choices that take the least of the budget, if that is within it."""
        chosen = self.space.smallest(self.budget)
        cost = self.space.cost(chosen)
        if self.space.excess(cost, self.budget) > 0:
            dense = self.space.dense
            raise UserError(
                f"no candidate meets --max-flops {self.settings.max_flops:g} and --max-parameters "
                f"{self.settings.max_parameters:g}: the nearest has "
                f"{cost.flops / dense.flops:.4f} of the dense network's FLOPs and "
                f"{cost.parameters / dense.parameters:.4f} of its parameters "
                f"({reporting.describe(self.space.table(chosen))})"
            )
        return chosen

    def _score_images(self) -> Tensor:
        """The minibatch that scores are computed on: training images, drawn with the seed."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        order = torch.randperm(len(self.data.train), generator=generator)
        return self.feed.sample(order[: self.settings.score_images])[0]

    def _build(self, units: UnitTable | None) -> torch.nn.Module:
        """The network of a table; of ``None`` the dense counterpart."""
        torch.manual_seed(self.settings.seed)
        return self.space.build_dense() if units is None else self.space.build(units)

    def _try_out(self, units: UnitTable | None) -> None:
        """Takes a network there and back, so that what cannot run here is said before a search."""
        model = self._build(units).to(self.device).train()
        labels = self.data.train.labels[:2].to(self.device)
        try:
            if units is not None:
                naswot(model, self.images)
            F.cross_entropy(model(self.images[:2]).float(), labels).backward()
        # What a backend or a user's model raises is of no one kind.
        except Exception as error:
            raise UserError(
                f"model {self.space.model!r} cannot be searched here: {first_line(error)}"
            ) from error

    def _draw(self, study: Study) -> None:
        """The first stage: draws candidates until there are as many as asked for."""
        scores = {key_of(r.units): r.score for r in study.records if r.score is not None}
        trials, done = self.settings.trials, len(study.records)
        with Bar("candidates", trials, min(done, trials), "candidate", self.quiet) as bar:
            while len(study.records) < trials:
                trial, record = study.draw()
                if self.space.excess(record.cost, self.budget) == 0:
                    key = key_of(record.units)
                    if key not in scores:
                        scores[key] = self._score(record.units)
                    record = record._replace(score=scores[key])
                study.tell(trial, record)
                best = max(scores.values())
                bar.step(f"{len(scores)} within the budget, best score {best:.2f}")

    def _score(self, units: UnitTable) -> float:
        return naswot(self._build(units).to(self.device), self.images)

    def _shortlist(self, records: list[Record]) -> list[UnitTable]:
        """The distinct candidates with the best scores; of equal ones the first drawn."""
        untrained = reporting.ranked(records, {}, self.space.dense)
        return [entry["units"] for entry in untrained[: self.settings.keep]]

    def _train_dense(self) -> None:
        """Trains the dense counterpart as the candidates were, unless none of them could be."""
        wanted = self.settings.dense and self.dense["history"] is None
        if wanted and any(entry["accuracy"] is not None for entry in self.trained.values()):
            self.dense = self._train("the dense counterpart", None)

    def _train(self, name: str, units: UnitTable | None) -> dict:
        """The second stage: trains a candidate from its start; returns its figures."""
        settings = self.settings.training(units)
        learner = Learner(name, self._build(units), settings, self.device)
        epochs = settings.epochs
        try:
            batch = self.feed.batch_size
            total = epochs * self.feed.steps * batch
            with Progress(name, epochs, 0, total, self.quiet, learner.running) as progress:
                while len(learner.history) < epochs:
                    figures = learner.train_epoch(self.feed, lambda: progress.step(batch))
                    learner.history.append(figures)
                    progress.epoch(figures)
        except TrainingError as error:  # the others may do better
            return {"accuracy": None, "failure": str(error), "history": learner.history}
        accuracy = learner.history[-1]["test_accuracy"]
        return {"accuracy": accuracy, "failure": None, "history": learner.history}

    def _write(self, records: list[Record], finished: bool) -> dict:
        dense = self.space.dense
        candidates = reporting.ranked(records, self.trained, dense, self.dense["accuracy"])
        best = candidates[0] if candidates and candidates[0]["accuracy"] is not None else None
        results = {
            "settings": self.settings.to_dict(),
            "versions": self.versions,
            "data": reporting.data_summary(self.data),
            "dense": dense._asdict() | self.dense,
            "budget": self.budget._asdict(),
            "counts": reporting.counts(records),
            "finished": finished,
            "units": best and best["units"],
            "command": best and reporting.command(self.settings, best["units"]),
            "candidates": candidates,
        }
        write_json(self.folder / RESULTS, results)
        return results

    def _print(self, results: dict) -> None:
        print(
            f"{self.data.name}: {len(self.data.train)} training images, accuracy on "
            f"{len(self.data.test)} more that were held out of them"
        )
        print(", ".join(f"{n} {name.replace('_', ' ')}" for name, n in results["counts"].items()))
        print()
        trained = [entry for entry in results["candidates"] if entry["history"] is not None]
        print(reporting.table(trained, results["dense"], self.space))
        print()
        print(f"the winner: {results['command']}")
        print(f"{RESULTS} and the winner's table, {UNITS}: {self.folder}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two searches that write the same files would spoil both; the system frees the lock of a
        process that was killed."""
        filelock = require("filelock", "filelock", "a search", "search")
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another search is at work in {self.folder}") from None
        try:
            yield
        finally:
            lock.release()


def _held_out(data: ImageData) -> ImageData:
    """The training images alone, some of them in the place of the test images."""
    train, held = split_by_class(data.train.labels, _HELD_OUT, seed=0)
    if len(held) == 0:
        raise UserError(
            f"{data.name} has {len(data.train)} training images: a search holds some of each class "
            "out, and needs at least two of one"
        )
    return replace(data, train=data.train[train], test=data.train[held])
