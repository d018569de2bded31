"""The figures of a search: its results file and the table at its end."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ..metrics import render_table, saving
from ..models import dense_counterpart
from ..train.data import ImageData
from ..train.errors import UserError
from ..train.settings import option
from .settings import EXTENDABLE, SearchSettings
from .space import Cost, Space, UnitTable
from .study import Record

RESULTS = "search.json"


def key_of(units: UnitTable) -> str:
    return json.dumps(units)


def read_results(folder: Path) -> dict | None:
    """The results file of a folder; ``None`` where there is none.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the results of a search from {path}: {error}") from error
    kinds = {"settings": dict, "data": dict, "candidates": list}
    if not isinstance(results, dict) or any(
        not isinstance(results.get(name), kind) for name, kind in kinds.items()
    ):
        raise UserError(
            f"{path} holds no results of a search: it lacks {', '.join(kinds)} or one of them"
        )
    return results


def check_same_search(
    results: dict, settings: SearchSettings, data: ImageData, folder: Path
) -> None:
    """Raises ``UserError`` where a folder's results are of other settings or data; with another
    number of trials or of trained candidates a search goes on."""
    saved = results["settings"]
    for name, value in settings.to_dict().items():
        if name not in EXTENDABLE and saved.get(name) != value:
            raise UserError(
                f"{folder} holds a search with {option(name)} {saved.get(name)}, got {value}: "
                "choose another --out"
            )
    for name, value in data_summary(data).items():
        if results["data"].get(name) != value:
            raise UserError(
                f"{folder} holds a search on other data: {name} was {results['data'].get(name)}, "
                f"is now {value}"
            )


def trained_before(results: dict, path: Path) -> dict[str, dict]:
    """What training gave of each candidate, by ``key_of`` its table.

    Raises:
        UserError: an entry lacks its table or its figures.
    """
    try:
        return {
            key_of(entry["units"]): {
                name: entry[name] for name in ("accuracy", "failure", "history")
            }
            for entry in results["candidates"]
            if entry["history"] is not None
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: a candidate lacks its figures ({error!r})") from error


def data_summary(data: ImageData) -> dict:
    return {
        "name": data.name,
        "shape": list(data.shape),
        "classes": list(data.classes),
        "training_images": len(data.train),
        "validation_images": len(data.test),
    }


def counts(records: list[Record]) -> dict[str, int]:
    """How many were drawn, and what became of them."""
    within = [record for record in records if record.score is not None]
    distinct = {key_of(record.units) for record in within}
    return {
        "drawn": len(records),
        "over_budget": len(records) - len(within),
        "repeated": len(within) - len(distinct),
        "scored": len(distinct),
    }


def ranked(records: list[Record], trained: dict[str, dict], dense: Cost) -> list[dict]:
    """Distinct candidates within the budget: trained ones by accuracy, then others by score."""
    entries = {}
    for record in records:
        if record.score is not None:
            entries.setdefault(key_of(record.units), _entry(record, dense))
    untrained = {"accuracy": None, "failure": None, "history": None}
    merged = [entry | trained.get(key, untrained) for key, entry in entries.items()]

    def rank(entry: dict) -> tuple[float, float]:
        accuracy = -1.0 if entry["accuracy"] is None else entry["accuracy"]
        return accuracy, entry["score"]

    return sorted(merged, key=rank, reverse=True)


def _entry(record: Record, dense: Cost) -> dict:
    return {
        "units": record.units,
        "parameters": record.cost.parameters,
        "flops": record.cost.flops,
        "parameters_saving": saving(record.cost.parameters, dense.parameters),
        "flops_saving": saving(record.cost.flops, dense.flops),
        "score": record.score,
    }


def table(candidates: list[dict], space: Space) -> str:
    """A line a candidate, and one for the dense counterpart."""
    rows = [("units", "accuracy", "score", "parameters", "saved", "FLOPs an item", "saved")]
    for entry in candidates:
        failed = "failed" if entry["failure"] is not None else ""
        rows.append(
            (
                describe(entry["units"]),
                failed if entry["accuracy"] is None else f"{entry['accuracy']:.2%}",
                f"{entry['score']:.2f}",
                f"{entry['parameters']:,}",
                f"{entry['parameters_saving']:.2%}",
                f"{entry['flops']:,}",
                f"{entry['flops_saving']:.2%}",
            )
        )
    dense = space.dense
    name = dense_counterpart(space.model)
    rows.append((name, "", "", f"{dense.parameters:,}", "", f"{dense.flops:,}", ""))
    return render_table(rows)


def describe(units: UnitTable) -> str:
    """A table in a line: ``layer1 normal, 2-4-m; layer2 2-4-m``."""
    entries = {stage: [e] if isinstance(e, str) else e for stage, e in units.items()}
    return "; ".join(f"{stage} {', '.join(turns)}" for stage, turns in entries.items())


def command(settings: SearchSettings, units: UnitTable) -> str:
    """The command that trains the network of a table."""
    words = ["--model", settings.model, "--data", settings.data]
    if settings.image_size is not None:
        words += ["--image-size", str(settings.image_size)]
    words += ["--model-arg", f"units={json.dumps(units)}"]
    words += ["--model-arg", "shuffle=True"] if settings.shuffle else []
    return f"python -m bunit_kernels.train {shlex.join(words)}"
