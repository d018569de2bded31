"""Channel shuffle: the order of a stacked layer's output channels that interleaves its units.

Round robin: the first output channel of every unit in the units' order, then the second of every
unit that has one, and so on. For ``U`` units of ``c`` output channels each, channel ``j`` of unit
``u`` lands at ``j * U + u``: ShuffleNet's channel shuffle with one group a unit (Zhang et al., "An
Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018, section 3.1).
csrc/cpu/stack.h follows the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

from torch import Tensor

from ._device_index import DeviceIndex, select
from ._tensor_format import is_channels_last
from ._torch_private import transforms_active


def round_robin(widths: Sequence[int]) -> tuple[int, ...]:
    """For each channel of the shuffled output the one of the units' concatenated outputs that it
    is; ``widths`` are the units' output channels."""
    firsts = list(accumulate(widths, initial=0))
    return tuple(
        first + channel
        for channel in range(max(widths))
        for first, width in zip(firsts, widths, strict=False)
        if channel < width
    )


def shuffled(y: Tensor, widths: Sequence[int], dim: int) -> Tensor:
    """The units' concatenated outputs in round-robin order; ``dim`` has the channels. Images keep
    their memory format. Alone in this it is a copy; where nothing moves it is ``y``."""
    if _moves_nothing(widths):
        return y
    if len(set(widths)) == 1:
        return _along(y, dim, lambda t, d: _turned(t, len(widths), d))
    return _along(y, dim, lambda t, d: _picked(t, tuple(widths), round_robin, d))


def unshuffled(y: Tensor, widths: Sequence[int], dim: int) -> Tensor:
    """The inverse of :func:`shuffled`."""
    if _moves_nothing(widths):
        return y
    if len(set(widths)) == 1:
        return _along(y, dim, lambda t, d: _turned(t, widths[0], d))
    return _along(y, dim, lambda t, d: _picked(t, tuple(widths), _places, d))


def _moves_nothing(widths: Sequence[int]) -> bool:
    return len(widths) == 1 or max(widths) == 1


def _turned(y: Tensor, rows: int, dim: int) -> Tensor:
    """Channels as a matrix of ``rows`` rows, transposed."""
    pair = dim if dim >= 0 else dim - 1
    return y.unflatten(dim, (rows, -1)).transpose(pair, pair + 1).flatten(pair, pair + 1)


def _places(widths: Sequence[int]) -> tuple[int, ...]:
    """The inverse of :func:`round_robin`."""
    order = round_robin(widths)
    return tuple(sorted(range(len(order)), key=order.__getitem__))


@cache
def _kept(order: Callable, widths: tuple[int, ...]) -> DeviceIndex:
    """Never freed: a captured CUDA graph may read it at any later time."""
    return DeviceIndex(order(widths))


def _picked(y: Tensor, widths: tuple[int, ...], order: Callable, dim: int) -> Tensor:
    # By index: what a split into channels and their concatenation would export is one node each.
    return select(y, dim, lambda: order(widths), lambda: _kept(order, widths))


def _along(y: Tensor, dim: int, move) -> Tensor:
    """``move(y, dim)``, for channels_last images along the dimension that lies innermost. Under
    torch.func's transforms, which do not tell formats, as it comes."""
    if y.dim() != 4 or dim != 1 or transforms_active():
        return move(y, dim)
    if not is_channels_last(y):
        return move(y, dim)
    return move(y.movedim(1, -1), -1).movedim(-1, 1)
