"""The paper's Algorithm 1: a network of hybrid stacked layers, with normal layers between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ..layout import resolve_units
from ..nn import StackedConv2d
from ..units import PAPER_POOL, UnitSpec
from .blocks import (
    Flatten,
    ImageSize,
    check_count,
    conv_norm_relu,
    height_and_width,
    total_widths,
)

Pool = Sequence[str | UnitSpec]
Counts = Sequence[Mapping[str | UnitSpec, int]]


def bunit_net(
    pool: Pool | None,
    units_per_layer: Sequence[int],
    *,
    seed: int | None = None,
    counts: Counts | None = None,
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
) -> nn.Module:
    """Builds a network as the paper's Algorithm 1 does.

    For each stacked layer, units are drawn from ``pool``. Before each stands a normal layer (3x3
    convolution, BatchNorm, ReLU) from what the layer before gives, the sum of its units' last
    widths, to the sum of the first widths of those that follow. A 2x2 max pool of stride 2 lies
    behind each stacked layer but the last, a linear map of all its values is the classifier.
    The network of the paper's Table II is ``bunit_net(None, (20, 20))``.

    Shape: [N, in_channels, *image_size] -> [N, num_classes].

    Args:
        pool: units to draw from, of one depth; ``None`` for ``PAPER_POOL``.
        units_per_layer: how many units each stacked layer has (the paper's M); as many stacked
            layers as there are numbers.
        seed: of the draw; ``None`` draws another network each time.
        counts: how many of each unit, one mapping for each stacked layer, in place of a draw, such
            as ``[{"1-2-1": 3, "1-2-2": 17}, {"2-1-2": 20}]``. Equal units are then neighbours, in
            the pool's order.
        image_size: a side of at least ``2 ** (layers - 1)``, for the pools.

    Raises:
        ValueError: no layer or one without units; counts of another number of layers or units than
            ``units_per_layer``, or of units that the pool does not have; units of different depth
            in a layer; images too small for the pools; a number that is none.
    """
    layers = draw_layers(pool, units_per_layer, seed, counts)
    return alternate(StackedConv2d, layers, num_classes, in_channels, image_size)


def draw_layers(
    pool: Pool | None,
    units_per_layer: Sequence[int],
    seed: int | None = None,
    counts: Counts | None = None,
) -> list[tuple[UnitSpec, ...]]:
    """The units of each stacked layer; see ``bunit_net``."""
    pool = PAPER_POOL if pool is None else tuple(map(UnitSpec, pool))
    numbers = list(units_per_layer) if isinstance(units_per_layer, Sequence) else None
    if not numbers or any(type(n) is not int or n < 1 for n in numbers):
        raise ValueError(
            "units_per_layer must be one int of at least 1 for each stacked layer, at least one, "
            f"got {units_per_layer!r}"
        )
    if counts is None:
        drawn = iter(UnitSpec.sample(sum(numbers), pool, seed))
        layers = [[next(drawn) for _ in range(n)] for n in numbers]
    else:
        if len(counts) != len(numbers):
            raise ValueError(
                f"counts must have one mapping for each of the {len(numbers)} stacked layers, "
                f"got {len(counts)}"
            )
        layers = [_counted(j, pool, counts[j - 1], n) for j, n in enumerate(numbers, 1)]
    return [resolve_units(units) for units in layers]


def _counted(
    layer: int, pool: tuple[UnitSpec, ...], counts: Mapping, number: int
) -> list[UnitSpec]:
    if not isinstance(counts, Mapping):
        raise ValueError(f"counts of stacked layer {layer} must map units to numbers, got {counts}")
    found = {UnitSpec(unit): n for unit, n in counts.items()}
    unknown = [str(unit) for unit in found if unit not in pool]
    if unknown:
        raise ValueError(
            f"counts of stacked layer {layer} name {', '.join(unknown)}, the pool has "
            f"{', '.join(map(str, pool))}"
        )
    bad = next(((str(u), n) for u, n in found.items() if type(n) is not int or n < 0), None)
    if bad:
        raise ValueError(
            f"counts of stacked layer {layer} must be ints of at least 0, "
            f"got {bad[1]!r} of {bad[0]}"
        )
    if sum(found.values()) != number:
        raise ValueError(
            f"counts of stacked layer {layer} add up to {sum(found.values())} units, "
            f"units_per_layer asks for {number}"
        )
    return [unit for unit in dict.fromkeys(pool) for _ in range(found.get(unit, 0))]


def alternate(
    stack: Callable[[Sequence[UnitSpec]], nn.Module],
    layers: Sequence[Sequence[UnitSpec]],
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
) -> nn.Module:
    """Normal and stacked layers by turns, as ``bunit_net`` says; ``stack`` makes a stacked layer of
    its units."""
    check_count("num_classes", num_classes)
    channels = check_count("in_channels", in_channels)
    height, width = height_and_width(image_size)
    least = 2 ** (len(layers) - 1)
    if min(height, width) < least:
        raise ValueError(
            f"image_size must be at least {least} for the {len(layers) - 1} pools between "
            f"{len(layers)} stacked layers, got {image_size!r}"
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for j, units in enumerate(layers, 1):
        if j > 1:
            # Rounded up, so that no row or column of an odd size is lost.
            parts[f"pool{j - 1}"] = nn.MaxPool2d(2, ceil_mode=True)
            height, width = -(-height // 2), -(-width // 2)
        before, *_, after = total_widths(units)
        parts[f"normal{j}"] = conv_norm_relu(channels, before)
        parts[f"stack{j}"] = stack(units)
        channels = after
    parts["flatten"] = Flatten(channels, height, width)
    parts["head"] = nn.Linear(parts["flatten"].features, num_classes)
    return nn.Sequential(parts)
