"""Pieces that several networks share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, fx, nn

from ..nn._fx_leaf import leaf_call
from ..units import UnitSpec

ImageSize = int | tuple[int, int]


class Flatten(nn.Module):
    """``[N, *shape]`` (or anything with as many values an item) -> ``[N, prod(shape)]``.

    Unlike ``nn.Flatten`` it knows what the classifier behind it was built for, and says so.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape
        self.features = 1
        for size in shape:
            self.features *= size

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return leaf_call(self, x)
        x = x.flatten(1)
        if x.shape[1] != self.features:
            raise ValueError(
                f"the classifier was built for {'x'.join(map(str, self.shape))} values an item, "
                f"got {x.shape[1]}; build the model with the image_size it shall see"
            )
        return x

    def extra_repr(self) -> str:
        return "x".join(map(str, self.shape))


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    """``image_size`` as a pair.

    Raises:
        ValueError: it is not one int or two, of at least 1.
    """
    sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"image_size must be one or two ints of at least 1, got {image_size!r}")
    return sizes


def form_of(
    form: str | None, image_size: ImageSize, forms: Sequence[str] = ("imagenet", "cifar")
) -> str:
    """Which of its forms a backbone takes: ``form`` itself, or, where that is ``None``,
    ``"cifar"`` for images of which no side is above 64 and ``"imagenet"`` for others.

    Raises:
        ValueError: a form that is none of ``forms``, or see ``height_and_width``.
    """
    if form is not None and form not in forms:
        expected = ", ".join(f'"{name}"' for name in forms)
        raise ValueError(f"form must be {expected} or None, got {form!r}")
    small = max(height_and_width(image_size)) <= 64
    return form or ("cifar" if small else "imagenet")


def check_count(name: str, value: int) -> int:
    """``value`` itself; ``ValueError`` unless it is an int of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
    return value


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """A normal layer: dense convolution of stride 1 that keeps the size, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def total_widths(units: Sequence[UnitSpec]) -> list[int]:
    """Channels of a stacked layer before its first level and after each level."""
    return [sum(widths) for widths in zip(*(unit.widths for unit in units), strict=True)]


def dense_levels(units: Sequence[UnitSpec], kernel_size: int = 3) -> nn.Sequential:
    """The dense counterpart of a stacked convolution: as many levels, of the same total widths."""
    widths = total_widths(units)
    return nn.Sequential(*(conv_norm_relu(a, b, kernel_size) for a, b in pairwise(widths)))
