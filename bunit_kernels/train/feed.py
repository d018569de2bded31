"""Batches of images as a network takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .augment import draw_variations, mixup, resolve, shift_padding, vary
from .data import ImageData
from .data.images import IN_MEMORY, LabelledFiles, LabelledImages, channel_statistics
from .data.stream import decoded_batches
from .errors import UserError
from .settings import Settings

#: Bytes of images as float32 that are picked, varied and normalised at once, where several batches
#: are no more: few small images do not share well among cores. (A batch of 128 of MNIST's on two
#: cores: 38 us of eight at once, 60 alone.)
_AT_ONCE = 4 << 20
_STATISTICS = 1024  # streamed images whose mean and deviation stand for those of all


def make_feed(data: ImageData, *args, **kwargs) -> Feed:
    """The feed of a data set; the arguments are those of ``Feed``."""
    return (StreamFeed if data.streamed else Feed)(data, *args, **kwargs)


class Feed:
    """Batches of a data set in memory, on a device.

    The order and the variation of an epoch depend on the seed and the epoch's number alone, so a
    resumed run sees what an uninterrupted one would. Of several processes that train together each
    takes its share of what a single one with their batches' sum would see: batch k of the epoch's
    order is images ``k * B`` to ``(k + 1) * B - 1``, ``B = world * batch_size``; rank r has
    images r, r + world, r + 2 world, ... of them, varied as they would be there. (With mixup where
    ``batch_size`` is even; see :func:`mixup` for how images are paired.)

    Args:
        statistics: mean and deviation of each channel, of values in [0, 1]; those of the training
            images where ``None``.
        rank, world: which process this is, of how many; ``batch_size`` is of each.

    Raises:
        UserError: there are fewer images than processes, or the variation is one of streamed
            images.
    """

    def __init__(
        self,
        data: ImageData,
        settings: Settings,
        device: torch.device,
        statistics: tuple[list[float], list[float]] | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to {world - 1}, got {rank}")
        if len(data.train) < world:
            raise UserError(f"{len(data.train)} training images are too few for {world} processes")
        self.device = device
        self.rank, self.world = rank, world
        self.batch_size = min(settings.batch_size, len(data.train) // world)
        self.seed, self.mixup = settings.seed, settings.mixup
        self.workers = settings.workers or max(1, (os.cpu_count() or 1) // world)
        self.classes = len(data.classes)
        self.augmentation = resolve(settings.augment, data.shape[0], data.streamed)
        if self.augmentation == "resized-crop-flip" and not data.streamed:
            raise UserError(
                f"--augment {self.augmentation} is done as images are decoded: it needs --stream"
            )
        self.padding = shift_padding(data.shape[1:])
        self.format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.train, self.test = self._place(data.train), self._place(data.test)
        self.mean, self.deviation = statistics or self._statistics()
        self._shift = torch.tensor(self.mean, device=device)[:, None, None] * 255
        self._scale = 1 / (torch.tensor(self.deviation, device=device)[:, None, None] * 255)

    @property
    def steps(self) -> int:
        """Batches an epoch. The incomplete one at the end is left out: other images each time."""
        return len(self.train) // (self.batch_size * self.world)

    def training(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's batches of an epoch from a step on: images ``[N, C, H, W]`` float32 with
        labels ``[N]`` or, with mixup, class probabilities ``[N, classes]``."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(len(self.train), generator=generator)
        # Drawn for the whole epoch: what a later step gets does not depend on the ones before.
        variations = draw_variations(self.augmentation, len(order), self.padding, generator)
        weights = [1.0] * self.steps
        if self.mixup:
            drawn = np.random.default_rng([self.seed, epoch]).beta(*[self.mixup] * 2, self.steps)
            weights = drawn.tolist()
        size = self.batch_size
        wanted = slice(first_step * size, self.steps * size)
        order = order[self.rank :: self.world][wanted]
        if variations is not None:
            variations = variations[self.rank :: self.world][wanted].to(self.device)
        at_once = size * self._batches_at_once()
        parts = [slice(start, start + at_once) for start in range(0, len(order), at_once)]
        weights = iter(weights[first_step:])
        for part, batch in zip(parts, self._batches(self.train, order, parts, epoch), strict=True):
            varied = None if variations is None else variations[part]
            images = self.normalise(vary(batch.images, varied, self.padding))
            for x, labels in zip(images.split(size), batch.labels.split(size), strict=True):
                weight = next(weights)
                yield mixup(x, labels, self.classes, weight) if self.mixup else (x, labels)

    def testing(
        self, batch_size: int | None = None, share: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images and labels ``[N]``.

        Args:
            share: every ``world``-th image from number ``rank`` on instead of all of them.
        """
        size = batch_size or max(self.batch_size, 256)
        order = torch.arange(len(self.test))
        order = order[self.rank :: self.world] if share else order
        shares = [slice(start, start + size) for start in range(0, len(order), size)]
        for batch in self._batches(self.test, order, shares):
            yield self.normalise(batch.images), batch.labels

    def sample(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The training images of those ``[N]`` indices, not varied, and their labels ``[N]``."""
        batch = next(self._batches(self.train, indices, [slice(len(indices))]))
        return self.normalise(batch.images), batch.labels

    def normalise(self, images: Tensor) -> Tensor:
        """Bytes -> float32 of mean 0 and deviation 1 over the training set, by channel."""
        # Bytes minus floats at once would be one pass less, but is not vectorised on a CPU: slower.
        x = images.float().sub_(self._shift).mul_(self._scale)
        return x.contiguous(memory_format=self.format)

    def _batches_at_once(self) -> int:
        return max(1, _AT_ONCE // (self.batch_size * self.train.images[0].numel() * 4))

    def _place(self, part: LabelledImages) -> LabelledImages:
        fits = part.images.numel() <= IN_MEMORY
        return part.to(self.device) if fits else part

    def _statistics(self) -> tuple[list[float], list[float]]:
        return channel_statistics(self.train.images)

    def _batches(
        self,
        part: LabelledImages,
        order: Tensor,
        shares: list[slice],
        epoch: int | None = None,
    ) -> Iterator[LabelledImages]:
        """The images ``order[share]`` of each share, on the device."""
        order = order.to(part.images.device)
        labels = part.labels[order]  # at once: picked step by step they took a fifth of a batch
        for share in shares:
            # Image by image, where [] copies byte by byte: a sixth to a tenth of the time on a CPU.
            images = part.images.index_select(0, order[share])
            yield LabelledImages(images, labels[share]).to(self.device)


class StreamFeed(Feed):
    """Batches of a data set in files, which worker processes decode ahead of the training.

    With ``resized-crop-flip``, what ``auto`` means for colour images, a random part of each
    training image is scaled to the image size; else, and in the test, its middle.
    """

    def _batches_at_once(self) -> int:
        return 1  # each of them is one worker's

    def _place(self, part: LabelledFiles) -> LabelledFiles:
        return part

    def _statistics(self) -> tuple[list[float], list[float]]:
        count = min(len(self.train), _STATISTICS)
        order = torch.linspace(0, len(self.train) - 1, count).long()
        shares = [slice(start, start + 64) for start in range(0, count, 64)]
        batches = self._batches(self.train, order, shares)
        return channel_statistics(torch.cat([batch.images.cpu() for batch in batches]))

    def _batches(
        self,
        part: LabelledFiles,
        order: Tensor,
        shares: list[slice],
        epoch: int | None = None,
    ) -> Iterator[LabelledImages]:
        varied = epoch is not None and self.augmentation == "resized-crop-flip"
        batches = decoded_batches(
            part,
            (order[share] for share in shares),
            seed=(self.seed, epoch) if varied else None,
            workers=min(self.workers, len(shares)),
            pinned=self.device.type == "cuda",
        )
        for images, labels in batches:
            yield LabelledImages(
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for each epoch; the first is ``seed``."""
    return seed + 1_000_003 * epoch
