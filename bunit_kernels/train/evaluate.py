"""``--eval-only``: the figures of a checkpoint's network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import backends
from . import report as reporting
from .checkpoint import build_model, check_data, check_model
from .errors import UserError, first_line
from .feed import make_feed
from .loop import Learner
from .prepare import prepare_device, read_data
from .settings import Settings


def evaluate(settings: Settings, checkpoint: Path, content: dict) -> None:
    """Prints the table of one network on the test images, normalised as in its training.

    Args:
        content: what ``load_checkpoint`` read from ``checkpoint``.

    Raises:
        UserError: the checkpoint does not fit the settings, the data or this machine.
    """
    check_model(content, checkpoint, settings.model)
    device = prepare_device(settings)
    data = read_data(settings)
    check_data(content, checkpoint, data)
    model = build_model(content, checkpoint)
    learner = Learner(settings.model, model, replace(settings, ema=None), device)
    feed = make_feed(data, settings, device, (content["mean"], content["deviation"]))
    try:
        figures = reporting.sizes(learner.model, data.shape)
        _, figures["accuracy"] = learner.evaluate(feed)
    except Exception as error:  # a backend's or a compiler's, of no one kind
        raise UserError(f"model {learner.name!r} cannot run here: {first_line(error)}") from error
    seconds = reporting.time_inference([learner], feed)
    figures["inference_seconds"] = seconds[learner.name]
    print(data.describe())
    print(f"backend: {backends.describe(device)}, batches of {feed.batch_size}")
    print()
    print(reporting.table({"networks": {learner.name: figures}}, [learner.name]))
