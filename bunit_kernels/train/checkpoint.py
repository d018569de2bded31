"""A network in a file: weights, optimizer, history, and what it takes to build and feed it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import torch
from torch import nn

from ..models import create_model
from .data import ImageData
from .errors import UserError, first_line
from .files import write_atomically

_FORMAT = 2
_TYPES = {
    "format": int,
    "model": str,
    "arguments": dict,
    "state": dict,
    "optimizer": dict,
    "scaler": dict,
    "history": list,
    "batches": int,
    "totals": torch.Tensor,
    "averaged": int,
    "versions": dict,
    "settings": dict,
    "shape": list,
    "classes": list,
    "mean": list,
    "deviation": list,
}


def save_checkpoint(path: Path, content: dict) -> None:
    """Writes a checkpoint, whole or not at all; only tensors and plain values are in it, so that
    ``torch.load(weights_only=True)`` reads it.

    Raises:
        OSError: it cannot be written; a checkpoint that was there before stays as it was.
    """
    buffer = io.BytesIO()  # torch.save would turn a full disk into a RuntimeError of its own
    torch.save({"format": _FORMAT, **content}, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def save_weights(path: Path, state: dict, description: dict) -> None:
    """Writes weights alone as safetensors, whole or not at all, for programs that need nothing
    else; ``description`` goes into the file's metadata, each value as JSON."""
    from safetensors.torch import save

    content = save(
        {name: value.contiguous() for name, value in state.items()},
        {name: json.dumps(value) for name, value in description.items()},
    )
    write_atomically(path, lambda file: file.write(content))


def load_checkpoint(path: Path) -> dict:
    """Reads what ``save_checkpoint`` wrote, onto the CPU.

    Raises:
        UserError: no such file, cut short, or something else.
    """
    try:
        found = path.is_file()
    except OSError as error:  # such as of a name that is too long
        raise UserError(f"no checkpoint {path}: {error.strerror}") from error
    if not found:
        raise UserError(f"no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file: RuntimeError, UnpicklingError, EOFError, KeyError, ... by where it is cut.
    except Exception as error:
        raise UserError(
            f"cannot read checkpoint {path}: it is cut short, damaged or no checkpoint"
        ) from error
    wrong = (
        [key for key, kind in _TYPES.items() if not isinstance(content.get(key), kind)]
        if isinstance(content, dict)
        else list(_TYPES)
    )
    if wrong:
        raise UserError(f"{path} is no checkpoint of this program: it lacks {', '.join(wrong)}")
    if content["format"] != _FORMAT:
        raise UserError(
            f"checkpoint {path} has format {content['format']}, this version reads {_FORMAT}"
        )
    unusable = [key for key, usable in _usable(content).items() if not usable]
    if unusable:
        raise UserError(f"checkpoint {path} is damaged: unusable are {', '.join(unusable)}")
    return content


def _usable(content: dict) -> dict[str, bool]:
    """Whether what a checkpoint's lists and dicts hold is of the kind that it should be."""
    shape, mean, deviation = (content[key] for key in ("shape", "mean", "deviation"))
    average = content.get("average")
    channels = shape[0] if shape and type(shape[0]) is int else None
    return {
        "state": _is_state(content["state"]),
        "average": average is None or _is_state(average),
        "arguments": all(isinstance(name, str) for name in content["arguments"]),
        "history": all(
            isinstance(epoch, dict) and isinstance(epoch.get("test_accuracy"), float)
            for epoch in content["history"]
        ),
        "shape": len(shape) == 3 and all(type(size) is int and size > 0 for size in shape),
        "classes": all(isinstance(name, str) for name in content["classes"]),
        "mean": len(mean) == channels and all(map(_is_finite, mean)),
        "deviation": len(deviation) == channels
        and all(_is_finite(value) and value > 0 for value in deviation),
    }


def _is_state(state: object) -> bool:
    return isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def check_model(content: dict, path: Path, model: str) -> None:
    """Raises ``UserError`` where a checkpoint is of another model."""
    if content["model"] != model:
        raise UserError(f"checkpoint {path} is of model {content['model']!r}, not {model!r}")


def check_data(content: dict, path: Path, data: ImageData) -> None:
    """Raises ``UserError`` where a checkpoint's network takes other images or tells other classes
    apart."""
    for what, saved, given in (
        ("images of", "x".join(map(str, content["shape"])), "x".join(map(str, data.shape))),
        ("a number of classes of", len(content["classes"]), len(data.classes)),
    ):
        if saved != given:
            raise UserError(f"checkpoint {path} is for {what} {saved}, {data.name} has {given}")


def best_weights(content: dict) -> dict:
    """A checkpoint's weights to infer with: the moving average where there is one."""
    return content["state"] if content.get("average") is None else content["average"]


def load_weights(model: nn.Module, state: dict, path: Path) -> None:
    """Puts a checkpoint's weights into ``model``.

    Raises:
        UserError: the model has other parameters.
    """
    try:
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} does not fit the model: {reason}") from error


def build_model(content: dict, path: Path) -> nn.Module:
    """The network of a checkpoint, with its weights to infer with.

    Raises:
        UserError: this version does not know the model, or builds it otherwise.
    """
    try:
        model = create_model(content["model"], **content["arguments"])
    # Arguments that a factory does not check, such as sizes that no memory holds.
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"cannot build the model of checkpoint {path}: {reason}") from error
    load_weights(model, best_weights(content), path)
    return model
