"""Batches of images as a network takes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .augment import augment, resolve
from .data import ImageData, LabelledImages
from .data.images import channel_statistics
from .settings import Settings

_ON_DEVICE = 4 * 2**30  # bytes; a data set up to this size is copied to an accelerator whole


class Feed:
    """Batches of a data set on a device, as a network takes them.

    The order and the variation of an epoch depend on the seed and the epoch's number alone, so a
    resumed run sees what an uninterrupted one would.

    Args:
        statistics: mean and deviation of each channel, of values in [0, 1]; those of the training
            images where ``None``.
    """

    def __init__(
        self,
        data: ImageData,
        settings: Settings,
        device: torch.device,
        statistics: tuple[list[float], list[float]] | None = None,
    ):
        self.device = device
        self.batch_size = min(settings.batch_size, len(data.train))
        self.seed = settings.seed
        self.augmentation = resolve(settings.augment, data.shape[0])
        self.format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.mean, self.deviation = statistics or channel_statistics(data.train.images)
        self._shift = torch.tensor(self.mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(self.deviation, device=device)[:, None, None] * 255)
        fits = data.train.images.numel() + data.test.images.numel() <= _ON_DEVICE
        place = device if fits else torch.device("cpu")
        self.train, self.test = data.train.to(place), data.test.to(place)

    @property
    def steps(self) -> int:
        """Batches an epoch. The incomplete one at the end is left out: other images each time."""
        return len(self.train) // self.batch_size

    def training(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(len(self.train), generator=generator)
        for start in range(0, self.steps * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size].to(self.train.images.device)
            batch = self.train[index].to(self.device)
            images = augment(self.augmentation, batch.images, generator)
            yield self.normalise(images), batch.labels

    def testing(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        size = batch_size or max(self.batch_size, 256)
        for start in range(0, len(self.test), size):
            batch: LabelledImages = self.test[start : start + size].to(self.device)
            yield self.normalise(batch.images), batch.labels

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes -> float32 of mean 0 and deviation 1 over the training set, by channel."""
        x = images.float().sub_(self._shift).mul_(self._scale)
        return x.contiguous(memory_format=self.format)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for each epoch; the first is ``seed``."""
    return seed + 1_000_003 * epoch
