"""``fuse``: batch norms folded into the weights before them, for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._call_graph import CallGraph
from ._replace import has_hooks, replace_modules
from ._stacked_layer import StackedLayer

_CONVS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model for inference: batch norms folded into the weights before them.

    Stacked layers lose their norms and get biases: each is then one whole-unit launch, without
    folding on every call. An ordinary convolution and the BatchNorm that alone takes its output
    become one convolution (``torch.nn.utils.fusion.fuse_conv_bn_eval``), with ``nn.Identity`` in
    place of the norm. Such pairs are found by ``torch.fx`` as ``forward`` calls them with its
    default arguments, in modules that cannot be traced as neighbours in an ``nn.Sequential``.
    What cannot be folded (norms without running statistics, of another class, or with hooks) stays
    as it is.

    The outputs are the model's but for rounding. The class of the model and its modules' names
    stay, so that it is saved, copied, compiled and exported like the original; its ``state_dict``
    has other keys, and loads into a model that went through ``fuse`` as well.

    Args:
        model: in eval mode.
        inplace: changes ``model`` itself; otherwise it is left as it was.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: it, or a module in it, is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes an nn.Module, got {type(model).__name__}")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        which = f"its module {training!r}" if training else "it"
        raise ValueError(
            "fuse takes a model in eval mode, since batch statistics cannot be folded: call "
            f"model.eval() first; {which} is in training mode"
        )
    if not inplace:
        model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, StackedLayer):
            module.fold_norms()
    pairs = _conv_norm_pairs(model)
    with torch.no_grad():
        fused = {conv: fuse_conv_bn_eval(conv, norm) for conv, norm in pairs}
    replace_modules(model, fused | {norm: nn.Identity().eval() for _, norm in pairs})
    return model


def _conv_norm_pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    graph = CallGraph(model)
    pairs = []
    for name, conv in model.named_modules():
        if type(conv) not in _CONVS or not name:
            continue
        partner = graph.partner(name)
        norm = None if partner is None else model.get_submodule(partner)
        if _foldable(norm, _CONVS[type(conv)]) and not has_hooks(conv):
            pairs.append((conv, norm))
    return pairs


def _foldable(norm: nn.Module | None, expected: type[_BatchNorm]) -> bool:
    return (
        type(norm) in (expected, nn.SyncBatchNorm)
        and norm.running_mean is not None
        and not has_hooks(norm)
    )
