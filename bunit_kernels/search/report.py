"""The figures of a search: its results file and the table at its end."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from ..metrics import WEIGHTS, Comparison, render_table
from ..models import dense_counterpart
from ..train.data import ImageData
from ..train.errors import UserError
from ..train.settings import option
from .settings import EXTENDABLE, SearchSettings
from .space import Cost, Space, UnitTable
from .study import Record

RESULTS = "search.json"
UNTRAINED = {"accuracy": None, "failure": None, "history": None}


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
            key_of(entry["units"]): {name: entry[name] for name in UNTRAINED}
            for entry in results["candidates"]
            if entry["history"] is not None
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: a candidate lacks its figures ({error!r})") from error


def dense_before(results: dict) -> dict:
    """What training gave of the dense counterpart, which a search may not have trained yet."""
    dense = results.get("dense")
    if not isinstance(dense, dict) or any(name not in dense for name in UNTRAINED):
        return UNTRAINED
    return {name: dense[name] for name in UNTRAINED}


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


def ranked(
    records: list[Record],
    trained: dict[str, dict],
    dense: Cost,
    dense_accuracy: float | None = None,
) -> list[dict]:
    """Distinct candidates within the budget: trained ones by accuracy, then others by score. TCA
    and TSA are of trained ones, where the dense counterpart's accuracy is known."""
    entries = {}
    for record in records:
        if record.score is not None:
            entries.setdefault(key_of(record.units), record)
    merged = [
        _entry(record, dense, trained.get(key, UNTRAINED), dense_accuracy)
        for key, record in entries.items()
    ]

    def rank(entry: dict) -> tuple[float, float]:
        accuracy = -1.0 if entry["accuracy"] is None else entry["accuracy"]
        return accuracy, entry["score"]

    return sorted(merged, key=rank, reverse=True)


def _entry(record: Record, dense: Cost, trained: dict, dense_accuracy: float | None) -> dict:
    beside = Comparison(
        parameters=record.cost.parameters,
        dense_parameters=dense.parameters,
        flops=record.cost.flops,
        dense_flops=dense.flops,
        accuracy=trained["accuracy"],
        dense_accuracy=dense_accuracy,
    )
    sizes = ("parameters", "flops", "parameters_saving", "flops_saving", "speedup")
    return {
        "units": record.units,
        **{name: getattr(beside, name) for name in sizes},
        "score": record.score,
        "tradeoffs": [asdict(score) for score in beside.scores],
        **trained,
    }


def table(candidates: list[dict], dense: dict, space: Space) -> str:
    """A line a candidate, and one for the dense counterpart; TCA and TSA where they are known."""
    names = [(w1, w2, measure) for w1, w2 in WEIGHTS for measure in ("tca", "tsa")]
    if not any(entry["tradeoffs"] for entry in candidates):
        names = []
    titles = ["units", "accuracy", "score", "parameters", "saved", "FLOPs an item", "saved"]
    titles += ["speedup", *(f"{measure.upper()} ({w1:g}, {w2:g})" for w1, w2, measure in names)]
    rows = [titles]
    for entry in candidates:
        values = [value for t in entry["tradeoffs"] for value in (t["tca"], t["tsa"])]
        rows.append(
            [
                describe(entry["units"]),
                _accuracy(entry),
                f"{entry['score']:.2f}",
                f"{entry['parameters']:,}",
                f"{entry['parameters_saving']:.2%}",
                f"{entry['flops']:,}",
                f"{entry['flops_saving']:.2%}",
                f"{entry['speedup']:.2f}x",
                *([f"{value:.2f}" for value in values] or [""] * len(names)),
            ]
        )
    sizes = [f"{dense['parameters']:,}", "", f"{dense['flops']:,}", ""]
    rest = [""] * (1 + len(names))
    rows.append([dense_counterpart(space.model), _accuracy(dense), "", *sizes, *rest])
    return render_table(rows)


def _accuracy(entry: dict) -> str:
    if entry["accuracy"] is None:
        return "failed" if entry["failure"] is not None else ""
    return f"{entry['accuracy']:.2%}"


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
