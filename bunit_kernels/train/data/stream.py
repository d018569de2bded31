"""Images decoded by worker processes, batch by batch, ahead of the training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import TrainingError, UserError, first_line
from .decode import decode
from .images import LabelledFiles

#: Left out of the middle in a test, as a share of the side: ImageNet's recipe scales the shorter
#: side to 256 pixels and takes 224 of them.
TEST_MARGIN = 1 - 224 / 256


@dataclass(frozen=True)
class DecodedImages(Dataset):
    """What a worker does: a batch's indices to its images and labels.

    Each image has random numbers of its own, from ``seed`` and its index, so that neither the
    number of workers nor the order of images changes how one is varied.
    """

    part: LabelledFiles
    seed: tuple[int, ...] | None  # None: the middle of each image

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor] | UserError:
        images = np.empty((len(indices), *self.part.shape), np.uint8)
        try:
            for index, out in zip(indices, images, strict=True):
                if self.seed is None:
                    decode(self.part.path(index), out, margin=TEST_MARGIN)
                else:
                    decode(self.part.path(index), out, np.random.default_rng([*self.seed, index]))
        except UserError as error:  # returned: raised, its message would be a worker's traceback
            return error
        return torch.from_numpy(images), self.part.labels[indices]


def decoded_batches(
    part: LabelledFiles,
    batches: Iterable[Tensor],
    seed: tuple[int, ...] | None,
    workers: int,
    pinned: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``[N, C, H, W]`` uint8 and labels ``[N]`` of each batch.

    Args:
        batches: indices ``[N]`` of each.
        seed: of random resized crops and flips; ``None``: the middle of each image.
        workers: processes.
        pinned: whether the memory is one that an accelerator copies from while it computes.

    Raises:
        UserError: an image is broken.
        TrainingError: a worker died.
    """
    loader = DataLoader(
        DecodedImages(part, seed),
        batch_sampler=(batch.tolist() for batch in batches),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pinned,
        generator=torch.Generator(),  # its own: torch's would be set forward by each loader
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:  # killed, for instance for lack of shared memory
        raise TrainingError(f"decoding images failed: {first_line(error)}") from error


def _as_it_is(batch: tuple[Tensor, Tensor] | UserError) -> tuple[Tensor, Tensor] | UserError:
    return batch
