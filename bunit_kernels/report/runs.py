"""Runs of the training program, read from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path

from .. import __version__
from ..metrics import Comparison
from ..train.errors import UserError
from ..train.report import comparison
from ..train.run import METRICS

# What the page needs of a metrics file, and the kind of each value.
_SETTINGS = {"model": str, "epochs": int, "batch_size": int}
_VERSIONS = {"bunit_kernels": str, "torch": str, "device": str, "platform": str}
_DATA = {"name": str, "shape": list, "classes": list, "training_images": int, "test_images": int}
_RUN = {"settings": dict, "versions": dict, "backend": str, "data": dict, "networks": dict}
_COUNTS = {"parameters": int, "flops": int}
_ACCURACIES = ("accuracy", "best_accuracy")  # None before the first epoch ends
_SECONDS = ("training_step_seconds", "inference_seconds")  # there when the run is finished
_EPOCH = {
    "epoch": int,
    "train_loss": Real,
    "train_accuracy": Real,
    "test_loss": Real,
    "test_accuracy": Real,
}


@dataclass(frozen=True)
class TrainedRun:
    """A run. ``title`` tells it from the others of a page; ``report`` is its metrics file, whose
    networks are the compact one and, where it was trained too, its dense counterpart."""

    folder: Path
    title: str
    report: dict

    @property
    def networks(self) -> dict[str, dict]:
        return self.report["networks"]

    @cached_property
    def comparison(self) -> Comparison | None:
        """The compact network beside the dense one; ``None`` where only one was trained."""
        return comparison(self.report, list(self.networks))

    @property
    def data_name(self) -> str:
        """The data's name, or that of its file or folder."""
        return Path(self.report["data"]["name"]).name

    @property
    def data_key(self) -> tuple:
        """The same for runs on the same images, whose accuracies may be compared."""
        data = self.report["data"]
        return data["name"], data["training_images"], data["test_images"]


def read_runs(folders: Sequence[Path]) -> list[TrainedRun]:
    """Reads the runs in ``folders``.

    Raises:
        UserError: a folder is not there, given twice, or holds no run that this version can read.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"run folder {folder} is given more than once")
    names = [place.name for place in places]
    return [
        TrainedRun(folder, name if names.count(name) == 1 else str(folder), _read(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _read(folder: Path) -> dict:
    path = folder / METRICS
    if not folder.is_dir():
        raise UserError(f"no run folder {folder}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run: there is no {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the run in {path}: {error}") from error
    faults = _faults(report)
    if faults:
        raise UserError(
            f"{path} is not what this version ({__version__}) writes{_writer(report)}: missing or "
            f"unusable are {', '.join(faults)}"
        )
    return report


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no figure")


def _writer(report: object) -> str:
    try:
        return f", it is of version {report['versions']['bunit_kernels']}"
    except (TypeError, KeyError):
        return ""


def _faults(report: object) -> list[str]:
    """What is missing in a metrics file, or is not of its kind."""
    faults = _wrong(report, _RUN)
    if faults:
        return faults
    for key, kinds in (("settings", _SETTINGS), ("versions", _VERSIONS), ("data", _DATA)):
        faults += _wrong(report[key], kinds, key)
    if faults:
        return faults
    for key, kind in (("shape", int), ("classes", str)):
        if not all(_is(value, kind) for value in report["data"][key]):
            faults.append(f"data.{key}")
    networks = report["networks"]
    if not 1 <= len(networks) <= 2:
        faults.append("networks, of which there are one or two")
    for name, figures in networks.items():
        faults += _network_faults(figures, f"networks.{name}")
    if not faults and len({key in f for key in _SECONDS for f in networks.values()}) > 1:
        faults.append("some of the times")
    return faults


def _network_faults(figures: object, where: str) -> list[str]:
    faults = _wrong(figures, {**_COUNTS, "history": list}, where)
    if faults:
        return faults
    faults += [f"{where}.{key}" for key in _COUNTS if figures[key] < 1]
    for key in _ACCURACIES:
        value = figures.get(key, "")
        if value is not None and not (_is(value, Real) and 0 <= value <= 1):
            faults.append(f"{where}.{key}")
    for key in _SECONDS:
        value = figures.get(key, 1)
        if not (_is(value, Real) and value > 0):
            faults.append(f"{where}.{key}")
    for number, epoch in enumerate(figures["history"]):
        faults += _wrong(epoch, _EPOCH, f"{where}.history[{number}]")
    return faults


def _wrong(value: object, kinds: dict[str, type], where: str = "") -> list[str]:
    """The keys that ``value`` lacks or that are of another kind."""
    if not isinstance(value, dict):
        return [where or "everything"]
    prefix = f"{where}." if where else ""
    return [prefix + key for key, kind in kinds.items() if not _is(value.get(key), kind)]


def _is(value: object, kind: type) -> bool:
    if isinstance(value, Real):  # JSON has numbers that a float does not hold
        return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, kind)
