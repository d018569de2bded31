"""The units of a run's network seen at work: their maps for images, and which of them are dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import unit_outputs, unit_variances
from ..metrics.kinds import stacked_layer, stacked_layers
from ..metrics.unit_outputs import below, check_threshold
from ..train.checkpoint import build_model, check_data, load_checkpoint
from ..train.data.decode import decode, read_header
from ..train.errors import UserError, first_line, require
from ..train.feed import Feed, make_feed
from ..train.prepare import read_data
from ..train.settings import Settings
from ..units import UnitSpec
from .runs import TrainedRun, read_runs
from .unit_plot import plot_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_IMAGES = 2000  # that variances are taken over
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class UnitRequest:
    """What is to be seen of a run's units.

    Attributes:
        images: files of images whose maps are drawn.
        layer: the stacked layer that is drawn; the network's first where ``None``.
        dead: whether dead units are looked for.
        data: what to look on instead of the run's own data.
        threshold: see :func:`bunit_kernels.metrics.dead_units`.

    Raises:
        UserError: a layer without images to draw, or a threshold that is not above 0.
    """

    images: tuple[Path, ...] = ()
    layer: str | None = None
    dead: bool = False
    data: str | None = None
    threshold: float = 0.01

    def __post_init__(self):
        if self.layer is not None and not self.images:
            raise UserError(f"--layer {self.layer} needs --feature-maps with images to draw")
        try:
            check_threshold(self.threshold)
        except ValueError as error:
            raise UserError(f"--dead-below: {error}") from error


@dataclass(frozen=True)
class LayerUnits:
    """The units of a layer, how much each varies, and the numbers of the dead ones."""

    name: str
    units: tuple[UnitSpec, ...]
    variances: tuple[float, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True)
class LayerMaps:
    """A layer's output for an image."""

    file: Path
    image: Tensor  # [C, H, W] uint8
    layer: str
    units: tuple[UnitSpec, ...]
    outputs: tuple[Tensor, ...]  # of each unit, [c_out, H', W'] or [c_out]

    def plot(self, dead: Sequence[int] = ()) -> Figure:
        return plot_units(self.image, self.outputs, self.units, dead)


class TrainedUnits:
    """The network of a checkpoint with what is to be seen of it; all that can be wrong is found
    out here, before the network runs.

    Raises:
        UserError: the checkpoint cannot be read, its network has no stacked layer or not the one
            asked for, an image cannot be read or is of another size or colour than the network
            takes, or the data are not there or of another kind.
    """

    def __init__(self, checkpoint: Path, request: UnitRequest, settings: dict | None = None):
        self.request = request
        content = load_checkpoint(checkpoint)
        self.network: str = content["model"]
        self.model: nn.Module = build_model(content, checkpoint).eval()
        self.layers = stacked_layers(self.model)
        if not self.layers:
            raise UserError(f"network {self.network} of {checkpoint} has no stacked layer")
        self.layer = next(iter(self.layers)) if request.layer is None else request.layer
        try:
            stacked_layer(self.model, self.layer)
        except ValueError as error:
            raise UserError(f"--layer of network {self.network}: {error}") from error
        self.images = [read_image(file, content["shape"]) for file in request.images]
        self._mean, self._deviation = (
            torch.tensor(content[name])[:, None, None] * 255 for name in ("mean", "deviation")
        )
        self.feed: Feed | None = None
        self.data_name = ""
        if request.dead:
            chosen = _settings(settings or content["settings"], request.data)
            self.feed, self.data_name = _feed(chosen, content, checkpoint), chosen.data_name

    def maps(self) -> list[LayerMaps]:
        """One entry an image.

        Raises:
            UserError: the network cannot run here.
        """
        found = []
        units = self.layers[self.layer].units
        for file, image in zip(self.request.images, self.images, strict=True):
            x = (image.float() - self._mean) / self._deviation
            outputs = tuple(y[0] for y in self._run(unit_outputs, x[None], self.layer))
            found.append(LayerMaps(file, image, self.layer, units, outputs))
        return found

    def dead(self) -> list[LayerUnits] | None:
        """One entry a layer; ``None`` where dead units were not asked for.

        Raises:
            UserError: the network cannot run here.
        """
        if self.feed is None:
            return None
        found = self._run(unit_variances, self.feed.testing())
        return [
            LayerUnits(name, self.layers[name].units, v, below(v, self.request.threshold))
            for name, v in found.items()
        ]

    def _run(self, function, *args):
        try:
            return function(self.model, *args)
        except UserError:
            raise
        except Exception as error:  # a backend's, of no one kind
            raise UserError(
                f"network {self.network} cannot run here: {first_line(error)}"
            ) from error


def units_of_run(run: TrainedRun, request: UnitRequest) -> TrainedUnits:
    """Of a run's first network, the compact one, as it was after the last epoch.

    Raises:
        UserError: see ``TrainedUnits``.
    """
    name = next(iter(run.networks))
    return TrainedUnits(run.folder / f"{name}_last.pt", request, run.report["settings"])


def draw_feature_maps(
    source: str | Path, images: Sequence[str | Path], layer: str | None = None
) -> list[Figure]:
    """A figure for each image: what each unit of a stacked layer of a trained network makes of it.

    Args:
        source: a run's folder, or a checkpoint of the training program.
        images: files, of the size and colour that the network takes.
        layer: the layer's name in the network; its first stacked one where not given.

    Raises:
        UserError: see ``TrainedUnits``; matplotlib is not installed.
    """
    require("matplotlib", "matplotlib", "a figure", extra="report")
    source, request = Path(source), UnitRequest(tuple(map(Path, images)), layer)
    if source.is_dir():
        found = units_of_run(read_runs([source])[0], request)
    else:
        found = TrainedUnits(source, request)
    return [maps.plot() for maps in found.maps()]


def read_image(file: Path, shape: Sequence[int]) -> Tensor:
    """``[C, H, W]`` uint8 of an image of that shape.

    Raises:
        UserError: it cannot be read or has another size or colour.
    """
    channels, *size = shape
    kinds = {1: "grey", 3: "in colour"}
    if channels not in kinds:
        raise UserError(
            f"image {file}: files have 1 channel (grey) or 3 (colour), the network takes {channels}"
        )
    (height, width), grey = read_header(file)
    found, wanted = kinds[1 if grey else 3], kinds[channels]
    if [height, width] != size or found != wanted:
        raise UserError(
            f"image {file} is {height}x{width} pixels {found}, the network takes "
            f"{size[0]}x{size[1]} pixels {wanted}"
        )
    pixels = np.empty(tuple(shape), np.uint8)
    decode(file, pixels)
    return torch.from_numpy(pixels)


def _settings(saved: dict, data: str | None) -> Settings:
    """Those of a run, for its test images or those of other ``data``."""
    known = {f.name for f in fields(Settings)}
    settings = Settings(**{key: value for key, value in saved.items() if key in known})
    return replace(settings, augment="none", mixup=0.0, data=data or settings.data)


def _feed(settings: Settings, content: dict, checkpoint: Path) -> Feed:
    """Images normalised as in the training of the checkpoint."""
    images = read_data(settings).limited(_MOST_IMAGES)
    check_data(content, checkpoint, images)
    return make_feed(images, settings, _CPU, (content["mean"], content["deviation"]))
