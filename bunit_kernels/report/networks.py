"""The layers of a run's networks, rebuilt from its checkpoints."""

from __future__ import annotations

from ..metrics import LayerTable, layers
from ..train.checkpoint import build_model, check_model, load_checkpoint
from ..train.errors import UserError, first_line
from .runs import TrainedRun


def layer_tables(run: TrainedRun) -> dict[str, LayerTable | str]:
    """The layers of each network of a run, or why they are not known."""
    return {name: _layers(run, name) for name in run.networks}


def _layers(run: TrainedRun, name: str) -> LayerTable | str:
    path = run.folder / f"{name}_last.pt"
    try:
        content = load_checkpoint(path)
        check_model(content, path, name)
        table = layers(build_model(content, path), content["shape"])
    except (UserError, ValueError) as error:
        return first_line(error)
    figures = run.networks[name]
    for what in ("parameters", "flops"):
        if getattr(table, what) != figures[what]:
            return (
                f"checkpoint {path} is of another network: {what} {getattr(table, what):,}, those "
                f"of the run are {figures[what]:,}"
            )
    return table
