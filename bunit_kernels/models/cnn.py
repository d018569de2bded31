"""The paper's exploration network: two hybrid stacked layers of units drawn at random."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from ..layout import resolve_units
from ..nn import StackedConv2d
from ..units import UnitSpec
from .blocks import (
    Flatten,
    ImageSize,
    check_count,
    conv_norm_relu,
    dense_levels,
    height_and_width,
    total_widths,
)
from .registry import register_model

Pool = Sequence[str | UnitSpec]


@register_model(dense="cnn")
def bunit_cnn(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    num_units: int = 20,
    pool: Pool | None = None,
    seed: int = 0,
) -> nn.Module:
    """Normal 3x3 -> stacked -> max pool 2 -> normal 3x3 -> stacked -> fully connected.

    Every convolution is followed by BatchNorm and ReLU and keeps the size. Takes
    ``[N, in_channels, *image_size]``, any size from 1x1 on.

    Args:
        num_units: units of each stacked layer.
        pool: specs to draw them from, of one depth; ``PAPER_POOL`` where ``None``.
        seed: of the draw. Another seed is another network, of other widths.

    Raises:
        ValueError: a number that is none, an empty pool, or specs of different depth drawn.
    """
    return _network(StackedConv2d, num_classes, in_channels, image_size, num_units, pool, seed)


@register_model()
def cnn(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    num_units: int = 20,
    pool: Pool | None = None,
    seed: int = 0,
) -> nn.Module:
    """``bunit_cnn`` of the same arguments, with dense convolutions of the same total widths."""
    return _network(dense_levels, num_classes, in_channels, image_size, num_units, pool, seed)


def _network(
    stack: Callable[[Sequence[UnitSpec]], nn.Module],
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
    num_units: int,
    pool: Pool | None,
    seed: int,
) -> nn.Module:
    check_count("num_classes", num_classes)
    check_count("in_channels", in_channels)
    check_count("num_units", num_units)
    height, width = height_and_width(image_size)
    units = UnitSpec.sample(2 * num_units, pool, seed)
    first, second = resolve_units(units[:num_units]), resolve_units(units[num_units:])
    first_widths, second_widths = total_widths(first), total_widths(second)
    features = Flatten(second_widths[-1], -(-height // 2), -(-width // 2))
    return nn.Sequential(
        OrderedDict(
            stem=conv_norm_relu(in_channels, first_widths[0]),
            stack1=stack(first),
            pool=nn.MaxPool2d(2, ceil_mode=True),  # ceil: a 1x1 image keeps its pixel
            mix=conv_norm_relu(first_widths[-1], second_widths[0]),
            stack2=stack(second),
            flatten=features,
            head=nn.Linear(features.features, num_classes),
        )
    )
