"""Every choice of a search, and what is checked about it before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from ..models import dense_counterpart, list_models
from ..models.tables import NORMAL
from ..train.errors import UserError
from ..train.settings import Settings, option

#: What a block may be where the user says nothing: normal, the unit of the authors' public code,
#: a unit twice as wide, and the paper's pool with its last width left to the block (``m``).
CANDIDATES = (NORMAL, "2-4-m", "4-8-m", "1-2-m", "2-1-m", "3-2-m")

#: A search may go on with others of these: what it found before stays as it is.
EXTENDABLE = ("trials", "keep", "dense")


@dataclass(frozen=True)
class SearchSettings:
    """What decides what a search finds; a resumed one has the same.

    Args:
        model: a network whose blocks a table of units names (:mod:`bunit_kernels.models.tables`).
        candidates: what a block may be; those that fit nowhere are an error. ``None`` for those of
            ``CANDIDATES`` that fit.
        shuffle: whether all stacked layers shuffle their output channels.
        turns: entries a stage; its blocks take them in turn.
        max_flops, max_parameters: the budget, as shares of the dense counterpart's.
        trials: tables drawn, with those over the budget and those drawn before.
        keep: of them the best by score are trained.
        dense: whether the dense counterpart is trained as the candidates are, for TCA and TSA.
        score_images: images of the minibatch that the score is computed on.
        data, image_size, augment, limit, epochs, batch_size, lr, seed, device, deterministic,
            threads: as in :class:`bunit_kernels.train.settings.Settings`.

    Raises:
        UserError: a number out of its range or a name that is not known.
    """

    model: str = "bunit_resnet20"
    candidates: tuple[str, ...] | None = None
    shuffle: bool = False
    turns: int = 2
    max_flops: float = 0.5
    max_parameters: float = 1.0
    trials: int = 100
    keep: int = 5
    dense: bool = True
    score_images: int = 64
    data: str = "digits"
    image_size: int | None = None
    augment: str = "auto"
    limit: int | None = None
    epochs: int = 3
    batch_size: int = 64
    lr: float = 0.05
    seed: int = 0
    device: str = "auto"
    deterministic: bool = False
    threads: int | None = None

    def __post_init__(self):
        for name, least in (("turns", 1), ("trials", 1), ("keep", 1), ("score_images", 2)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{option(name)} must be at least {least}, got {value}")
        for name in ("max_flops", "max_parameters"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise UserError(
                    f"{option(name)} is a share of the dense network's, above 0 and at most 1, "
                    f"got {value}"
                )
        if self.candidates is not None:
            object.__setattr__(self, "candidates", tuple(self.candidates))
            if not self.candidates or any(type(unit) is not str for unit in self.candidates):
                raise UserError(
                    f"--candidates must be {NORMAL!r} or like '2-4-m', got {self.candidates}"
                )
            if len(set(self.candidates)) < len(self.candidates):
                raise UserError(f"--candidates names one twice: {', '.join(self.candidates)}")
        self.training()
        if dense_counterpart(self.model) is None:
            ours = [name for name in list_models() if dense_counterpart(name) == self.model]
            hint = f"; did you mean {ours[0]!r}?" if ours else ""
            raise UserError(f"model {self.model!r} is dense itself, it takes no units{hint}")

    def training(self, units: dict | None = None) -> Settings:
        """The settings that a candidate is trained with."""
        shared = {f.name for f in fields(Settings)} & {f.name for f in fields(self)}
        arguments = {} if units is None else {"units": units}
        arguments |= {"shuffle": True} if self.shuffle else {}
        values = {name: getattr(self, name) for name in shared}
        return Settings(**values | {"model_arg": arguments, "dense": False})

    def to_dict(self) -> dict:
        """As JSON has it."""
        values = asdict(self)
        return values | {"candidates": self.candidates and list(self.candidates)}
