"""The paper's small convolutional network for MNIST, of LeNet's shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from ..nn import StackedConv2d
from ..units import UnitSpec
from .blocks import Flatten, ImageSize, check_count, height_and_width, total_widths
from .registry import register_model

_CHANNELS = 8
_POOL = tuple(UnitSpec(f"1-{hidden}-1:k5") for hidden in (2, 3, 4))

#: The rows of the paper's Table I: the width ``h`` of each of the eight units. Of the hybrid ones
#: the printed sizes give the sum of all ``h`` (23, 24 and 27); which unit has which is **our
#: choice**, as is the order.
LENET_UNITS = {
    "U1": (2, 2, 2, 2, 2, 2, 2, 2),
    "U2": (3, 3, 3, 3, 3, 3, 3, 3),
    "U3": (4, 4, 4, 4, 4, 4, 4, 4),
    "Hybrid1": (2, 2, 2, 3, 3, 3, 4, 4),
    "Hybrid2": (2, 2, 2, 3, 3, 4, 4, 4),
    "Hybrid3": (2, 3, 3, 3, 4, 4, 4, 4),
}


@register_model(dense="lenet")
def bunit_lenet(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: ImageSize = 28,
    seed: int = 0,
    units: str | None = None,
) -> nn.Module:
    """Normal 5x5 -> stacked level -> max pool -> stacked level -> max pool -> fully connected.

    Each of the normal layer's 8 channels goes through a unit 1-h-1 of 5x5 convolutions padded by
    1, with the first pool between its two levels: two stacked layers of one level each. Both pools
    are 5x5 with stride 2. Convolutions have a bias beside their norm, as in the authors' public
    code. Takes ``[N, in_channels, *image_size]``.

    Args:
        image_size: at least 23 on each side.
        seed: of the draw of ``h`` from 2, 3 and 4, one for each unit.
        units: a network of the paper's Table I in place of a draw: ``"U1"`` (all 1-2-1), ``"U2"``
            (1-3-1), ``"U3"`` (1-4-1), ``"Hybrid1"``, ``"Hybrid2"`` or ``"Hybrid3"``.

    Raises:
        ValueError: ``units`` is no such name, a number is none, the image is too small.
    """
    return _network(_stacked_level, num_classes, in_channels, image_size, seed, units)


@register_model()
def lenet(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: ImageSize = 28,
    seed: int = 0,
    units: str | None = None,
) -> nn.Module:
    """``bunit_lenet`` of the same arguments, with dense convolutions of the same total widths."""
    return _network(_dense_level, num_classes, in_channels, image_size, seed, units)


def _stacked_level(units: Sequence[UnitSpec]) -> nn.Module:
    return StackedConv2d(units, padding=1, bias=True)


def _dense_level(units: Sequence[UnitSpec]) -> nn.Module:
    in_channels, out_channels = total_widths(units)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 5, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _network(
    level: Callable[[Sequence[UnitSpec]], nn.Module],
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    seed: int,
    units: str | None,
) -> nn.Module:
    check_count("num_classes", num_classes)
    check_count("in_channels", in_channels)
    sizes = height_and_width(image_size)
    if min(sizes) < 23:
        raise ValueError(f"image_size must be at least 23 for the two pools, got {image_size!r}")
    specs = _units_of(units, seed)
    features = Flatten(_CHANNELS, *map(_size_behind, sizes))
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, _CHANNELS, 5),
            stack1=level([UnitSpec(u.widths[:2], u.kernel_size) for u in specs]),
            pool1=nn.MaxPool2d(5, 2),
            stack2=level([UnitSpec(u.widths[1:], u.kernel_size) for u in specs]),
            pool2=nn.MaxPool2d(5, 2),
            flatten=features,
            head=nn.Linear(features.features, num_classes),
        )
    )


def _units_of(name: str | None, seed: int) -> tuple[UnitSpec, ...]:
    if name is None:
        return UnitSpec.sample(_CHANNELS, _POOL, seed)
    if name not in LENET_UNITS:
        raise ValueError(f"units must be one of {', '.join(LENET_UNITS)} or None, got {name!r}")
    return tuple(UnitSpec(f"1-{hidden}-1:k5") for hidden in LENET_UNITS[name])


def _size_behind(size: int) -> int:
    """Pixels a side behind the second pool: 28 -> 24 -> 22 -> 9 -> 7 -> 2."""
    pooled = (size - 6 - 5) // 2 + 1
    return (pooled - 2 - 5) // 2 + 1
