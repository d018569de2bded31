"""What a layer is, in a few words for a table."""

from __future__ import annotations

from torch import nn

from ..layout import StackLayout

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_MOST_KINDS = 2  # of units in a cell of a table


def stack_layout(module: nn.Module) -> StackLayout | None:
    """The layout of a stacked layer, ``None`` for any other module. (The layers' classes cannot be
    asked for here: their package is built on this one.)"""
    layout = getattr(module, "layout", None)
    return layout if isinstance(layout, StackLayout) else None


def describe_kind(module: nn.Module) -> str:
    """``64 x 2-4-2 conv``, ``conv 3x3``, ``depthwise conv 3x3``, ``batch norm``, ``linear``; of
    other modules the class."""
    layout = stack_layout(module)
    if layout is not None:
        return f"{_describe_units(layout)} {'linear' if layout.kernel_size is None else 'conv'}"
    if isinstance(module, CONVOLUTIONS):
        return _describe_conv(module)
    if isinstance(module, NORMS):
        return "batch norm"
    return "linear" if isinstance(module, nn.Linear) else type(module).__name__


def _describe_units(layout: StackLayout) -> str:
    kinds = len(set(layout.units))
    if kinds <= _MOST_KINDS:
        return layout.describe()
    return f"{layout.num_units} units of {kinds} kinds,"


def _describe_conv(conv: nn.Module) -> str:
    words = ["conv", "x".join(map(str, conv.kernel_size))]
    if isinstance(conv, _TRANSPOSED):
        words.insert(0, "transposed")
    if conv.groups == conv.in_channels > 1:
        words.insert(0, "depthwise")
    elif conv.groups > 1:
        words.append(f"in {conv.groups} groups")
    return " ".join(words)
