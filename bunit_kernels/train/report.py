"""The figures of a run: the table at its end and the metrics file."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn

from .. import __version__
from ..metrics import (
    Comparison,
    Times,
    count_flops,
    count_parameters,
    interleaved_medians,
    render_table,
)
from .data import ImageData
from .feed import Feed
from .loop import Learner
from .recipes import applied_recipe
from .settings import Settings

_ROUNDS = 20  # of the timing at the end; the median is printed


def versions(device: torch.device, processes: int = 1) -> dict[str, str]:
    """What a figure depends on besides the settings."""
    found = {
        "bunit_kernels": __version__,
        "torch": str(torch.__version__),  # a class of its own, which no safe loader knows
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "processes": str(processes),
    }
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def sizes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    return {"parameters": count_parameters(model), "flops": count_flops(model, shape)}


def time_training(learners: list[Learner], feed: Feed) -> dict[str, float]:
    """Seconds of a training step of one batch, by network, measured in turn.

    Steps change the weights: call it when they are saved.
    """
    batch = next(feed.training(0))
    for learner in learners:
        learner.model.train()
    return interleaved_medians(
        {learner.name: partial(learner.step, *batch) for learner in learners}, _ROUNDS
    )


def time_inference(learners: list[Learner], feed: Feed) -> dict[str, float]:
    """Seconds of the forward pass of one batch, by network, measured in turn."""
    x, _ = next(feed.training(0))
    return interleaved_medians(
        {learner.name: partial(learner.predict, x) for learner in learners}, _ROUNDS
    )


def run_report(
    data: ImageData, settings: Settings, device: torch.device, backend: str, processes: int
) -> dict:
    """The metrics file's content before the first epoch: what is trained, on what, with what."""
    recipe, values = settings.recipe, settings.to_dict()
    return {
        "settings": values,
        "recipe": None if recipe is None else applied_recipe(recipe, values),
        "versions": versions(device, processes),
        "backend": backend,
        "data": {
            "name": data.name,
            "shape": list(data.shape),
            "classes": list(data.classes),
            "training_images": len(data.train),
            "test_images": len(data.test),
        },
        "networks": {},
    }


def comparison(report: dict, names: list[str]) -> Comparison | None:
    """The first network beside the second, from the report; ``None`` where there is only one."""
    if len(names) < 2:
        return None
    compact, dense = (report["networks"][name] for name in names)
    result = Comparison(
        parameters=compact["parameters"],
        dense_parameters=dense["parameters"],
        flops=compact["flops"],
        dense_flops=dense["flops"],
        accuracy=compact["accuracy"],
        dense_accuracy=dense["accuracy"],
    )
    if "inference_seconds" not in compact:
        return result
    return replace(
        result,
        batch_size=report["settings"]["batch_size"],
        **{
            field: Times(compact[key], dense[key])
            for field, key in (
                ("training_step", "training_step_seconds"),
                ("inference", "inference_seconds"),
            )
        },
    )


def comparison_dict(result: Comparison) -> dict:
    """A comparison with all that is derived from it, for the metrics file."""
    derived = (
        "parameters_saving", "flops_saving", "accuracy_difference", "speedup", "time_conversion"
    )  # fmt: skip
    scores = {"scores": [asdict(score) for score in result.scores]}
    return asdict(result) | {name: getattr(result, name) for name in derived} | scores


def table(report: dict, names: list[str]) -> str:
    """The table a run ends with, of two networks or one."""
    result = comparison(report, names)
    if result is not None:
        return result.table(tuple(names))
    figures = report["networks"][names[0]]
    rows = [
        ("", names[0]),
        ("accuracy", f"{figures['accuracy']:.2%}"),
        ("parameters", f"{figures['parameters']:,}"),
        ("FLOPs an item", f"{figures['flops']:,}"),
    ]
    for label, key in (
        ("ms a training step", "training_step_seconds"),
        ("ms an inference batch", "inference_seconds"),
    ):
        if key in figures:
            rows.append((label, f"{1e3 * figures[key]:.3f}"))
    return render_table(rows)
