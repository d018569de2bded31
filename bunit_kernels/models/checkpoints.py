"""Weights from elsewhere: loops over units in the layout of the authors' code, and plain ones.

The authors' public code keeps a stacked layer as a ``ModuleList`` of units, each with ``layer1``,
``layer2``, ... of (convolution, norm, ReLU): ``layer2.0.conv1.<unit>.layer1.0.weight``. Here that
becomes the loop that ``to_units()`` of a layer gives (``layer2.0.conv1.<unit>.0.weight``), whose
state every stacked layer loads.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..metrics.counts import uncompiled
from ..nn import StackedConv2d, StackedLinear
from ..nn._parameters import loop_parts
from .resnet import ResNet
from .wrappings import unwrap

_log = logging.getLogger(__name__)

# Names in the authors' small networks beside ours; "*" stands for a number. Their residual
# networks need no list: ours have the same names.
_LENET = (
    ("layer0.", "conv."),
    ("networks1.*.layer1.", "stack1.*.layer1."),
    ("networks1.*.layer2.", "stack2.*.layer1."),
    ("fc_out.", "head."),
)
_CNN = (
    ("norm_layer_1.", "normal1."),
    ("unit_layer_1.", "stack1."),
    ("norm_layer_2.", "normal2."),
    ("unit_layer_2.", "stack2."),
    ("fc_out.", "head."),
)
# Names of residual networks in akamaster's pytorch_resnet_cifar10 and kuangliu's pytorch-cifar.
_RESNET = (
    ("linear.", "fc."),
    ("layer*.*.shortcut.", "layer*.*.downsample."),
)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Loads ``state`` into ``model``, where every name and shape fits; else nothing is changed.

    A checkpoint that keeps the ``state_dict`` under a usual key beside other things will do, and so
    will names that DataParallel, ``torch.compile``, AveragedModel or Lightning lengthened
    (:mod:`bunit_kernels.models.wrappings`).

    Args:
        model: also compiled, or in DataParallel or DistributedDataParallel.
        state: a ``state_dict`` in any of these layouts, for every stacked layer by itself: packed,
            as the model's own; a loop over units, as ``to_units()`` gives; the authors' code's.
            Dense networks take torchvision's names and with them chenyaofo's
            (pytorch-cifar-models), ResNets also akamaster's and kuangliu's. Counts of batches may
            lack.

    Returns:
        What was taken off or filled in, a phrase each, such as ``"'module.' was taken off 120
        names"``; it is logged too (level INFO). Empty where the state is the network's own.

    Raises:
        TypeError: ``state`` is no mapping from names to tensors and holds none.
        ValueError: it holds several, or something is missing, unexpected or of another shape; the
            message says what.
    """
    model = _bare(model)
    own = model.state_dict()
    keys, state, said = unwrap(state, own)
    names = (*_names(model), *(_RESNET if isinstance(model, ResNet) else ()))
    steps = _steps(model)
    sources: dict[str, str] = {}  # the model's name of each tensor -> the checkpoint's
    for key, source in keys.items():
        name = _as_loop(key if key in own else _translate(key, names), steps)
        if name in sources:
            raise ValueError(
                f"the checkpoint holds {name} twice, as {sources[name]} and as {source}"
            )
        sources[name] = source
    translated = {name: state[key] for name, key in sources.items()}
    if isinstance(model, ResNet) and "linear.weight" in keys:
        translated |= _shortcuts_without_weights(model, translated, said)
    _check(_expected(model, translated), translated, sources)
    model.load_state_dict(translated)
    for phrase in said:
        _log.info("load_weights: %s", phrase)
    return tuple(said)


@torch.no_grad()
def authors_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` in the layout of the authors' code, which ``load_weights`` reads too.
    Tensors of stacked layers are copies, others are the model's own, detached."""
    state = model.state_dict()
    for name, layer in _stacked_layers(model).items():
        for key in _packed_keys(name, layer):
            del state[key]
        step = _modules_a_level(layer)
        for key, value in layer.to_units().state_dict().items():
            unit, position, rest = key.split(".", 2)
            level, place = divmod(int(position), step)
            state[f"{_prefix(name)}{unit}.layer{level + 1}.{place}.{rest}"] = value
    names = [(ours, theirs) for theirs, ours in _names(model)]
    return {_translate(key, names): value for key, value in state.items()}


def _stacked_layers(model: nn.Module) -> dict[str, StackedConv2d | StackedLinear]:
    kinds = (StackedConv2d, StackedLinear)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def _packed_keys(name: str, layer: nn.Module) -> list[str]:
    return [_prefix(name) + key for key in layer.state_dict()]


def _prefix(name: str | None) -> str:
    return f"{name}." if name else ""


def _modules_a_level(layer: nn.Module) -> int:
    """Positions that a level takes in a loop's unit: convolution, norm where there is one, ReLU."""
    return 2 if layer.norms is None else 3


def _names(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """The list of names that ``model`` needs: the one whose every name of ours it has."""
    children = {name for name, _ in model.named_children()}
    for names in (_LENET, _CNN):
        if {ours.split(".")[0] for _, ours in names} <= children:
            return names
    return ()


def _translate(key: str, names) -> str:
    for old, new in names:
        match = re.match(re.escape(old).replace(r"\*", r"(\d+)"), key)
        if match:
            for number in match.groups():
                new = new.replace("*", number, 1)
            return new + key[match.end() :]
    return key


def _bare(model: nn.Module) -> nn.Module:
    """The network without what compiles it or spreads it over processes."""
    around = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while (inner := uncompiled(model)) is not model or isinstance(model, around):
        model = model.module if inner is model else inner
    return model


def _shortcuts_without_weights(
    model: ResNet, state: dict[str, Tensor], said: list[str]
) -> dict[str, Tensor]:
    """Of akamaster's networks, whose shortcuts drop every other pixel and pad the channels with
    zeros on both sides (He et al. 2016, option A): convolutions and norms that do the same in eval
    mode, for the blocks of which ``state`` has none."""
    filled: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not name.endswith(".downsample") or any(k.startswith(f"{name}.") for k in state):
            continue
        conv, norm = module
        weight, before = torch.zeros_like(conv.weight), conv.in_channels
        first = (conv.out_channels - before) // 2
        weight[first : first + before, :, 0, 0] = torch.eye(before).to(weight)
        filled |= {
            f"{name}.0.weight": weight,
            f"{name}.1.weight": torch.full_like(norm.weight, (1 + norm.eps) ** 0.5),
            f"{name}.1.bias": torch.zeros_like(norm.bias),
            f"{name}.1.running_mean": torch.zeros_like(norm.running_mean),
            f"{name}.1.running_var": torch.ones_like(norm.running_var),
        }
    if filled:
        said.append(
            f"{len(filled) // 5} shortcuts without weights became convolutions that do the same in "
            "eval mode"
        )
    return filled


def _steps(model: nn.Module) -> dict[str, int]:
    return {name: _modules_a_level(layer) for name, layer in _stacked_layers(model).items()}


def _as_loop(key: str, steps: dict[str, int]) -> str:
    """``<layer>.<unit>.layer<level>.<place>`` becomes ``<layer>.<unit>.<position>``."""
    match = re.fullmatch(r"(?:(.*)\.)?(\d+)\.layer(\d+)\.(\d+)\.(.+)", key)
    if match is None or (match[1] or "") not in steps:
        return key
    name, unit, level, place, rest = match.groups()
    position = (int(level) - 1) * steps[name or ""] + int(place)
    return f"{_prefix(name)}{unit}.{position}.{rest}"


def _expected(model: nn.Module, state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that ``state`` must have: those of a loop for the layers that it has as a
    loop, the model's own for the rest."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for name, layer in _stacked_layers(model).items():
        prefix = _prefix(name)
        loop = re.compile(re.escape(prefix) + r"\d+\.")
        if any(loop.match(key) for key in state):
            for key in _packed_keys(name, layer):
                del expected[key]
            for _, shapes, _ in loop_parts(layer):
                expected |= {prefix + key: shape for key, shape in shapes.items()}
    return expected


def _check(expected: dict[str, tuple], state: dict[str, Tensor], sources: dict[str, str]) -> None:
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [sources[key] for key in state if key not in expected]
    shapes = [
        f"{sources[key]} {tuple(state[key].shape)} instead of {shape}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:6])}{', ...' if len(found) > 6 else ''}"
        for what, found in (
            ("missing", missing), ("unexpected", unexpected), ("of another shape", shapes),
        )
        if found
    ]  # fmt: skip
    if problems:
        raise ValueError(
            "the checkpoint is not of this model, which is left as it was; " + "; ".join(problems)
        )
