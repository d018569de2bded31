"""Parameters and FLOPs of a convolution and of the stacked layers that may stand for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from ..layout import StackLayout
from ..metrics import count_flops
from ..units import UnitSpec
from ._convolutions import Convolution


@dataclass(frozen=True)
class Cost:
    """``flops`` are those of one item, 2 x multiply-adds; ``None`` if no input size is known."""

    parameters: int
    flops: int | None


def conv_cost(found: Convolution, pixels: int | None) -> Cost:
    """Of a convolution and the norm after it; ``pixels`` are those of its output, all calls of one
    forward pass together."""
    conv = found.conv
    norm = 0 if found.norm is None else 2 * conv.out_channels
    weights = conv.weight.numel()
    bias = 0 if conv.bias is None else conv.out_channels
    return Cost(weights + bias + norm, None if pixels is None else 2 * weights * pixels)


def stack_cost(units: Sequence[UnitSpec], found: Convolution, pixels: int | None) -> Cost:
    """Of the layer of ``units`` in the convolution's place."""
    levels = StackLayout(tuple(units), found.conv.kernel_size[0]).levels
    weights = sum(sum(level.weight_sizes) for level in levels)
    per_channel = 1 if found.norm is None else 2  # a bias, or a norm's weight and bias
    vectors = per_channel * sum(level.out_channels for level in levels)
    return Cost(weights + vectors, None if pixels is None else 2 * weights * pixels)


def measure(
    model: nn.Module, convolutions: list[Convolution], input_size: Sequence[int]
) -> tuple[int, dict[str, int]]:
    """FLOPs of the model on one item, and of each convolution the pixels that it puts out."""
    with _output_pixels(convolutions) as pixels:
        flops = count_flops(model, input_size)
    return flops, pixels


@contextmanager
def _output_pixels(convolutions: list[Convolution]) -> Iterator[dict[str, int]]:
    pixels = {found.name: 0 for found in convolutions}

    def counter(name: str):
        def count(module, args, output):
            pixels[name] += output.shape[-2] * output.shape[-1]

        return count

    handles = [c.conv.register_forward_hook(counter(c.name)) for c in convolutions]
    try:
        yield pixels
    finally:
        for handle in handles:
            handle.remove()
