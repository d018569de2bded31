"""Images that need no file: scikit-learn's digits, and random ones."""

from __future__ import annotations

import torch

from ..errors import require
from .images import ImageData, LabelledImages, split_by_class


def load_digits() -> ImageData:
    """The 1797 grey 8x8 images of handwritten digits that scikit-learn ships.

    One in five of each class is for the test, always the same ones, so that accuracies of runs
    with different seeds compare.
    """
    datasets = require("sklearn.datasets", "scikit-learn", "--data digits")
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().byte().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    train, test = split_by_class(labels, 0.2, seed=0)
    data = LabelledImages(images, labels)
    return ImageData("digits", data[train], data[test], tuple(map(str, range(10))))


def load_synthetic() -> ImageData:
    """2048 training and 512 test images, 3x32x32, each its class's fixed random picture in noise.

    For trying out a machine: their accuracy says nothing about a network.
    """
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(64, 192, (10, 3, 32, 32), generator=generator)

    def draw(count: int) -> LabelledImages:
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randint(-64, 64, (count, 3, 32, 32), generator=generator)
        return LabelledImages((pictures[labels] + noise).byte(), labels)

    return ImageData("synthetic", draw(2048), draw(512), tuple(map(str, range(10))))
