"""What a layer is, in a few words for a table."""

from __future__ import annotations

from torch import nn

from ..layout import StackLayout

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_MOST_KINDS = 2  # of units in a cell of a table
_MOST_NAMES = 10  # of layers in an error


def stack_layout(module: nn.Module) -> StackLayout | None:
    """The layout of a stacked layer, ``None`` for any other module. (The layers' classes cannot be
    asked for here: their package is built on this one.)"""
    layout = getattr(module, "layout", None)
    return layout if isinstance(layout, StackLayout) else None


def stacked_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The stacked layers of ``model`` by name, in the order of ``named_modules``."""
    return {name: m for name, m in model.named_modules() if stack_layout(m) is not None}


def stacked_layer(model: nn.Module, name: str) -> nn.Module:
    """The stacked layer of that name.

    Raises:
        ValueError: the model has no such module, or it is not stacked.
    """
    stacked = stacked_layers(model)
    if name in stacked:
        return stacked[name]
    more = len(stacked) - _MOST_NAMES
    names = ", ".join(map(repr, list(stacked)[:_MOST_NAMES])) or "none"
    known = f"its stacked layers are {names}{f' and {more} more' if more > 0 else ''}"
    module = dict(model.named_modules()).get(name)
    if module is None:
        raise ValueError(f"the model has no module {name!r}; {known}")
    raise ValueError(f"{name!r} is no stacked layer but a {describe_kind(module)}; {known}")


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
