"""Every choice of a run, and what is checked about it before anything starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

import torch

from ..models import dense_counterpart
from .augment import AUGMENTATIONS
from .data.load import BUILTIN
from .errors import UserError
from .recipes import RECIPES

AMP_TYPES = ("bfloat16", "float16")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Settings:
    """What decides how a network is trained; a resumed run takes them over.

    ``recipe`` names the one whose values the command line put in place of the defaults; by itself
    it sets nothing.

    Raises:
        UserError: a value of another type, a number out of its range or a name that is not known.
    """

    model: str = "bunit_cnn"
    model_arg: dict = field(default_factory=dict)
    dense: bool = True
    data: str = "digits"
    image_size: int | None = None
    stream: bool | None = None
    augment: str = "auto"
    limit: int | None = None
    recipe: str | None = None
    epochs: int = 30
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.05
    schedule: str = "cosine"
    momentum: float = 0.9
    nesterov: bool = False
    epsilon: float = 1e-8
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 4.0
    seed: int = 0
    device: str = "auto"
    backend: str | None = None
    amp: str | None = None
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    threads: int | None = None
    workers: int | None = None
    save_every: int | None = None
    tensorboard: bool = False

    def __post_init__(self):
        self._check_types()
        for name in (
            "epochs", "batch_size", "accumulate", "image_size", "limit", "threads", "workers",
            "save_every",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{option(name)} must be at least 1, got {value}")
        for name, low, high in (
            ("lr", 0, math.inf),
            ("momentum", 0, 1),
            ("weight_decay", 0, math.inf),
            ("warmup_epochs", 0, math.inf),
            ("label_smoothing", 0, 1),
            ("mixup", 0, math.inf),
            ("ema", 0, 1),
            ("seed", 0, 2**48),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value < high:
                limit = "" if high == math.inf else f" and below {high}"
                raise UserError(f"{option(name)} must be at least {low}{limit}, got {value}")
        if not 0 <= self.teacher_weight <= 1:
            raise UserError(f"--teacher-weight must be from 0 to 1, got {self.teacher_weight}")
        for name in ("clip_norm", "temperature", "epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{option(name)} must be above 0, got {value}")
        if self.nesterov and self.momentum == 0:
            raise UserError("--nesterov needs a --momentum above 0")
        try:
            dense_counterpart(self.model)  # it knows the models, and lists them
        except ValueError as error:
            raise UserError(str(error)) from error
        for name, value, known in (
            ("augment", self.augment, AUGMENTATIONS),
            ("amp", self.amp, (None, *AMP_TYPES)),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("recipe", self.recipe, (None, *RECIPES)),
        ):
            if value not in known:
                names = ", ".join(str(k) for k in known if k is not None)
                raise UserError(f"unknown {option(name)} {value!r}, expected one of {names}")

    def _check_types(self) -> None:
        """Options have their types from the command line; what an edited file holds may be any."""
        for f, kind in zip(fields(self), get_type_hints(type(self)).values(), strict=True):
            value = getattr(self, f.name)
            if not isinstance(value, kind | int if "float" in f.type else kind):
                raise UserError(f"{option(f.name)} must be of type {f.type}, got {value!r}")

    @property
    def amp_dtype(self) -> torch.dtype | None:
        return None if self.amp is None else getattr(torch, self.amp)

    @property
    def data_name(self) -> str:
        """A short name for run folders."""
        return self.data if self.data in BUILTIN else Path(self.data).resolve().name

    def to_dict(self) -> dict:
        return asdict(self)


def option(name: str) -> str:
    """The command line's name of a setting."""
    return "--" + name.replace("_", "-")
