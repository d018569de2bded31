"""The draw of candidates: an Optuna study that can be stopped at any time and gone on with."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..train.errors import UserError, first_line, require
from .space import Cost, Space, UnitTable

if TYPE_CHECKING:
    import optuna


class Record(NamedTuple):
    """A candidate that was drawn; ``score`` is ``None`` where it is over the budget, or not known
    yet."""

    units: UnitTable
    cost: Cost
    score: float | None


class Study:
    """Draws candidates by TPE (tree-structured Parzen estimator) and remembers how they did.

    The draw number n has a sampler of its own, seeded by the search's seed and n, and sees nothing
    but the n finished ones before it, which are on disk. A draw that was cut short is thrown away
    and made again, so what is drawn does not depend on where a search was stopped. The first
    candidate is the smallest one: there is always one within the budget. Candidates over it are
    pruned with how far they are over it, which the sampler goes by too.

    Args:
        path: Optuna's journal; gone on with where it is there.
        smallest: the first candidate's choices.

    Raises:
        UserError: Optuna is not installed, or the journal cannot be read.
    """

    def __init__(self, path: Path, space: Space, budget: Cost, smallest: dict[str, str], seed: int):
        self._optuna = require("optuna", "Optuna", "a search", "search")
        self._path, self._space, self._budget, self._seed = path, space, budget, seed
        self._smallest = smallest
        states = self._optuna.trial.TrialState
        self._finished = (states.COMPLETE, states.PRUNED)
        categorical = self._optuna.distributions.CategoricalDistribution
        self._places = {
            place: categorical(tuple(choices)) for place, choices in space.choices.items()
        }
        _drop_torn_line(path)
        # Optuna's own lock, which a killed search leaves; the folder is locked by the caller.
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        with self._reading():
            storage = self._optuna.storages
            backend = storage.journal.JournalFileBackend(str(path))
            with _silent(self._optuna):
                self._study = self._optuna.create_study(
                    study_name="search",
                    storage=storage.JournalStorage(backend),
                    direction="maximize",
                    load_if_exists=True,
                )
            for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
                self._study.tell(trial.number, state=states.FAIL)
        self.records = self._read()

    def draw(self) -> tuple[optuna.Trial, Record]:
        """The next candidate, without its score; it is to be told of before another is drawn."""
        self._study.sampler = self._sampler(len(self.records))
        trial = self._study.ask(self._places)
        return trial, self._record(trial.params, None)

    def tell(self, trial: optuna.Trial, record: Record) -> None:
        """Keeps how a drawn candidate did."""
        if record.score is None:
            trial.report(-self._space.excess(record.cost, self._budget), 0)
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        else:
            self._study.tell(trial, record.score)
        self.records.append(record)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = random.Random(f"{self._seed} {number}").getrandbits(32)
        samplers = self._optuna.samplers
        with warnings.catch_warnings():  # Optuna 4 calls both experimental
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            sampler = samplers.TPESampler(seed=seed, multivariate=True)
            if number > 0:
                return sampler
            return samplers.PartialFixedSampler(self._smallest, sampler)

    def _read(self) -> list[Record]:
        with self._reading():
            trials = self._study.get_trials(deepcopy=False, states=self._finished)
            for trial in trials:
                if trial.distributions != self._places:
                    raise ValueError(f"trial {trial.number} is of another search")
            pruned = self._optuna.trial.TrialState.PRUNED
            return [
                self._record(trial.params, None if trial.state == pruned else trial.value)
                for trial in trials
            ]

    def _record(self, chosen: dict[str, str], score: float | None) -> Record:
        return Record(self._space.table(chosen), self._space.cost(chosen), score)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        # A damaged journal: ValueError, KeyError, TypeError, AssertionError, ... by what is lost.
        except Exception as error:
            raise UserError(
                f"cannot read the study {self._path}: it is damaged ({first_line(error)})"
            ) from error


def _drop_torn_line(path: Path) -> None:
    """Cuts off the end of a journal's last line where a power failure left but its beginning."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)


@contextmanager
def _silent(optuna: Any) -> Iterator[None]:
    """No line about a study that was created."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)
