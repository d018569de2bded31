"""The paper's exploration network: two hybrid stacked layers of units drawn at random."""

from __future__ import annotations

from torch import nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, dense_levels
from .builder import Counts, Pool, alternate, draw_layers
from .registry import register_model


@register_model(dense="cnn")
def bunit_cnn(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    num_units: int = 20,
    pool: Pool | None = None,
    seed: int = 0,
    counts: Counts | None = None,
) -> nn.Module:
    """The network of the paper's Table II: ``bunit_net(pool, (num_units, num_units))``.

    Normal 3x3 -> stacked -> max pool 2 -> normal 3x3 -> stacked -> fully connected. Every
    convolution is followed by BatchNorm and ReLU and keeps the size. Takes
    ``[N, in_channels, *image_size]``, any size from 2x2 on.

    Args:
        num_units: units of each stacked layer.
        pool: specs to draw them from, of one depth; ``PAPER_POOL`` where ``None``.
        seed: of the draw. Another seed is another network, of other widths.
        counts: in place of a draw, for each of the two stacked layers a mapping from units of the
            pool to numbers, which add up to ``num_units``.

    Raises:
        ValueError: a number that is none, an empty pool, specs of different depth drawn, or
            ``counts`` that do not fit.
    """
    check_count("num_units", num_units)
    layers = draw_layers(pool, (num_units, num_units), seed, counts)
    return alternate(StackedConv2d, layers, num_classes, in_channels, image_size)


@register_model()
def cnn(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    num_units: int = 20,
    pool: Pool | None = None,
    seed: int = 0,
    counts: Counts | None = None,
) -> nn.Module:
    """``bunit_cnn`` of the same arguments, with dense convolutions of the same total widths."""
    check_count("num_units", num_units)
    layers = draw_layers(pool, (num_units, num_units), seed, counts)
    return alternate(dense_levels, layers, num_classes, in_channels, image_size)
