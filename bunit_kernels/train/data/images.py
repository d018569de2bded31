"""What every loader returns."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

#: Bytes of decoded images. A data set up to this size is held in memory, and copied to an
#: accelerator whole; a larger folder of images is decoded anew each epoch.
IN_MEMORY = 4 * 2**30

_NAMED = 10  # classes that an error names
_CHUNK = 1024  # images that are floats at one time


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory."""

    images: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return tuple(self.images.shape[1:])

    def __getitem__(self, index) -> LabelledImages:
        return LabelledImages(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> LabelledImages:
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def resized(self, size: int) -> LabelledImages:
        return replace(self, images=_resize(self.images, size))


@dataclass(frozen=True)
class LabelledFiles:
    """Images in files, which are decoded when they are needed.

    The names are one block of memory: a million Python objects would be copied to each process
    that decodes, as their reference counts change.
    """

    files: np.ndarray  # [N] bytes, see os.fsencode
    labels: Tensor  # [N] int64
    shape: tuple[int, int, int]  # (C, H, W) of one image once it is decoded

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | Tensor) -> LabelledFiles:
        rows = index if isinstance(index, slice) else np.asarray(index)
        return replace(self, files=self.files[rows], labels=self.labels[index])

    def path(self, index: int) -> str:
        return os.fsdecode(self.files[index])


@dataclass(frozen=True)
class ImageData:
    """A training and a test set of one image size, both in memory or both in files.

    Raises:
        UserError: a set is empty, or the two do not fit each other.
    """

    name: str
    train: LabelledImages | LabelledFiles
    test: LabelledImages | LabelledFiles
    classes: tuple[str, ...]

    def __post_init__(self):
        for which, part in (("training", self.train), ("test", self.test)):
            if len(part) == 0:
                raise UserError(f"{self.name} holds no {which} image")
            if len(part) != len(part.labels):
                raise UserError(
                    f"{self.name}: {len(part)} {which} images, {len(part.labels)} labels"
                )
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= len(self.classes):
                raise UserError(
                    f"{self.name}: {which} labels from {low} to {high}, but there are "
                    f"{len(self.classes)} classes"
                )
        if min(self.train.shape) < 1:
            raise UserError(f"{self.name}: images are {_by(self.train.shape)}, without a pixel")
        if self.train.shape != self.test.shape:
            raise UserError(
                f"{self.name}: training images are {_by(self.train.shape)}, test images "
                f"{_by(self.test.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return self.train.shape

    @property
    def streamed(self) -> bool:
        """Whether images are decoded as they are needed, rather than held in memory."""
        return isinstance(self.train, LabelledFiles)

    def check_classes(self) -> None:
        """Raises ``UserError`` where a class is in one part alone. One that is in neither harms
        nothing: labels may start from 1."""
        counts = [
            torch.bincount(part.labels, minlength=len(self.classes))
            for part in (self.train, self.test)
        ]
        for which, here, there in (("test", *counts), ("training", *counts[::-1])):
            missing = ((here > 0) & (there == 0)).nonzero().squeeze(1).tolist()
            if missing:
                names = ", ".join(self.classes[label] for label in missing[:_NAMED])
                more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
                raise UserError(
                    f"{self.name} has no {which} image of {len(missing)} of its "
                    f"{len(self.classes)} classes: {names}{more}"
                )

    def describe(self) -> str:
        return (
            f"{self.name}: {len(self.train)} training and {len(self.test)} test images, "
            f"{_by(self.shape)}, {len(self.classes)} classes"
        )

    def resized(self, size: int) -> ImageData:
        """The same with images of ``size`` x ``size`` pixels."""
        if self.shape[1:] == (size, size):
            return self
        return replace(self, train=self.train.resized(size), test=self.test.resized(size))

    def limited(self, count: int | None) -> ImageData:
        """The same with at most ``count`` training and test images, always the same ones."""
        if count is None:
            return self
        generator = torch.Generator().manual_seed(0)
        # Drawn, since a folder's images come class by class.
        kept = (
            torch.randperm(len(part), generator=generator)[:count].sort().values
            for part in (self.train, self.test)
        )
        train, test = (part[i] for part, i in zip((self.train, self.test), kept, strict=True))
        return replace(self, train=train, test=test)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of ``[N, C, H, W]`` bytes, of values in [0, 1].

    A channel that is the same everywhere gets a deviation of 1.
    """
    count, total, squares = 0, 0.0, 0.0
    for chunk in images.split(_CHUNK):
        values = chunk.to(torch.float64).div_(255).transpose(0, 1).flatten(1)
        count += values.shape[1]
        total = total + values.sum(1)
        squares = squares + values.square().sum(1)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    deviation[deviation < 1e-4] = 1.0  # a 255th is 4e-3
    return mean.tolist(), deviation.tolist()


def split_by_class(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of a training and a test part, with ``fraction`` of each class in the test part.

    Of two images and more at least one is in each part; a single one is for training. Both parts
    are in ascending order.
    """
    generator = torch.Generator().manual_seed(seed)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        test[members[:count]] = True
    return (~test).nonzero().squeeze(1), test.nonzero().squeeze(1)


def _resize(images: Tensor, size: int) -> Tensor:
    return torch.cat(
        [
            F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .byte()
            for chunk in images.split(_CHUNK)
        ]
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
