"""A network's convolutions: which a stacked layer can stand for, and what follows each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from ..activations import activation_name
from ._call_graph import CallGraph
from ._replace import has_hooks
from .stacked_conv2d import StackedConv2d

_ANY_CONV = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network.

    ``norm`` and ``activation`` are the names of the modules that alone take its output, and take
    nothing else, so that a stacked layer may hold them; ``None`` where there is none. ``why_not``
    says why no stacked layer can stand for the convolution; empty where one can.
    """

    name: str
    conv: nn.Module
    why_not: str
    norm: str | None = None
    activation: str | None = None
    absorbed: tuple[nn.Module, ...] = ()

    @property
    def parent(self) -> str:
        return self.name.rpartition(".")[0]


def find_convolutions(model: nn.Module) -> list[Convolution]:
    """All convolutions of ``model`` in the order of ``named_modules``, those inside stacked layers
    left out."""
    graph = CallGraph(model)
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    found = []
    for name, module in model.named_modules():
        if not name or not isinstance(module, _ANY_CONV):
            continue
        why_not = _why_not(module)
        if not why_not and any(owners[id(p)] > 1 for p in module.parameters()):
            why_not = "another module has its weight, too"
        if why_not:
            found.append(Convolution(name, module, why_not))
            continue
        norm = _next(model, graph, name, _is_norm)
        activation = _next(model, graph, norm or name, _is_activation)
        absorbed = tuple(model.get_submodule(n) for n in (norm, activation) if n is not None)
        found.append(Convolution(name, module, "", norm, activation, absorbed))
    return found


def _next(model: nn.Module, graph: CallGraph, name: str, wanted) -> str | None:
    """The module that takes what ``name`` gives, identities passed over, if it is ``wanted``."""
    seen = {name}
    while (name := graph.partner(name)) is not None and name not in seen:
        seen.add(name)
        module = model.get_submodule(name)
        if wanted(module):
            return name
        if type(module) is not nn.Identity or has_hooks(module):
            return None
    return None


def _is_norm(module: nn.Module) -> bool:
    return (
        type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm)
        and module.affine
        and module.track_running_stats
        and not has_hooks(module)
    )


def _is_activation(module: nn.Module) -> bool:
    if has_hooks(module) or isinstance(module, nn.Identity):
        return False
    try:
        activation_name(module)
    except ValueError:
        return False
    return True


def _why_not(conv: nn.Module) -> str:
    if isinstance(conv, nn.modules.conv._ConvTransposeNd):
        return "transposed"
    if type(conv) is not nn.Conv2d:
        return f"a {type(conv).__name__}, not an nn.Conv2d"
    if has_hooks(conv):
        return "has hooks"
    if conv.groups != 1:
        return f"grouped ({conv.groups} groups)"
    if conv.padding_mode != "zeros":
        return f"padded by {conv.padding_mode!r}, not by zeros"
    for what, sides in (
        ("kernel", conv.kernel_size), ("stride", conv.stride), ("dilation", conv.dilation)
    ):  # fmt: skip
        if len(set(sides)) > 1:
            return f"{what} not square ({sides[0]}x{sides[1]})"
    kernel = conv.kernel_size[0]
    if kernel == 1:
        return "1x1"
    if kernel % 2 == 0:
        return f"even kernel ({kernel}x{kernel})"
    # Every level of a unit pads alike: only padding that keeps the size lets two stand for one.
    pads = (0, 0) if conv.padding == "valid" else conv.padding
    same = conv.dilation[0] * (kernel - 1) // 2
    if pads != "same" and set(pads) != {same}:
        return f"padding {pads[0]}x{pads[1]}, which is not {same} and does not keep the size"
    return ""


def stacked_layer(
    found: Convolution, units, activation: str | None, shuffle: bool, model: nn.Module
) -> nn.Module:
    """The layer of ``units`` that stands for a convolution, its norm and its activation."""
    conv = found.conv
    follows = None
    if found.activation is not None:
        follows = activation_name(model.get_submodule(found.activation))
    layer = StackedConv2d(
        units,
        kernel_size=conv.kernel_size[0],
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        shuffle=shuffle,
        norm=None if found.norm is None else "batch",
        activation=activation or follows or "relu",
        out_activation=follows or "identity",
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    if found.norm is not None:
        norm = model.get_submodule(found.norm)
        for level in layer.norms:
            level.eps, level.momentum = norm.eps, norm.momentum
        if type(norm) is nn.SyncBatchNorm:
            layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer, norm.process_group)
    return layer.train(conv.training)
