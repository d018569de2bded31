"""``replace_units``: fresh units in the place of some that learned nothing."""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layout import ConvGeometry, Level, StackLayout
from ..metrics.counts import uncompiled
from ..metrics.kinds import stacked_layer
from ..units import PAPER_POOL, UnitSpec
from ._draw_units import draw_units
from ._parameters import initialise, make_biases, make_weights
from ._stacked_layer import StackedLayer

#: A state that a channel of a BatchNorm starts from.
_FRESH_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def replace_units(
    module: nn.Module,
    which: Iterable[int] | Mapping[str, Iterable[int]],
    pool: Sequence[str | UnitSpec] = PAPER_POOL,
    *,
    seed: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Puts fresh units, drawn from ``pool``, in the place of some; all others keep their weights,
    their part of the norms and their running statistics, so that training can go on.

    A unit is replaced by one of the same input and output widths where the pool has any, drawn
    uniformly. Those for which it has none are replaced together, by as many units that take and
    give as many channels in sum; a kept unit between them then stands at other channels than
    before. In either case the layer is as wide as it was and fits its network.

    The parameters are new objects (of the old ones' device, dtype and ``requires_grad``): make a
    new optimizer afterwards. A network with other units than its factory makes is saved whole, or
    as a ``state_dict`` that loads into a network to which the same was done.

    Args:
        module: a stacked layer, or a network with ``which`` by the names of its stacked layers, as
            :func:`bunit_kernels.metrics.dead_units` gives them.
        which: numbers of the units to replace, from 0, in the layer's order.
        pool: what to draw from; the paper's pool where not given.
        seed: of the units drawn and their weights; without it torch's generator decides.
        inplace: changes ``module`` itself; otherwise it is left as it was, and the copy is
            returned.

    Returns:
        The layer or network with the new units, in the mode that it was in.

    Raises:
        TypeError: ``module`` or ``which`` is of another type.
        ValueError: a name is no stacked layer's, a number is out of range or given twice, the pool
            is empty, has units of another depth or none that fit, or a norm is no BatchNorm.
            Nothing is changed then.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"replace_units takes an nn.Module, got {type(module).__name__}")
    module = uncompiled(module)
    specs = tuple(UnitSpec(spec) for spec in pool)
    if not specs:
        raise ValueError("the pool to draw units from is empty")
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    rng = random.Random(seed)
    changes = {
        name: _plan(name, stacked_layer(module, name), numbers, specs, rng)
        for name, numbers in _by_layer(module, which).items()
    }
    result = module if inplace else copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set devices' too
        for name, change in changes.items():
            if change is not None:
                _apply(change, result.get_submodule(name))
    return result


def _by_layer(
    module: nn.Module, which: Iterable[int] | Mapping[str, Iterable[int]]
) -> Mapping[str, Iterable[int]]:
    if isinstance(which, Mapping):
        return which
    if not isinstance(module, StackedLayer):
        raise TypeError(
            "which must map names of stacked layers to numbers of units, since the module is "
            f"a {type(module).__name__} and no stacked layer; got {which!r}"
        )
    return {"": which}


@dataclass(frozen=True)
class _Change:
    """What a layer becomes: ``kept`` are the numbers of the units that stay."""

    kept: tuple[int, ...]
    layout: StackLayout
    geometry: ConvGeometry | None


def _plan(
    name: str,
    layer: nn.Module,
    numbers: Iterable[int],
    pool: tuple[UnitSpec, ...],
    rng: random.Random,
) -> _Change | None:
    if not isinstance(layer, StackedLayer):
        raise TypeError(f"{name!r} is a {type(layer).__name__}, not one of this library's layers")
    where = f" of layer {name!r}" if name else ""
    chosen = _check_numbers(numbers, layer.layout.num_units, where)
    for i, norm in enumerate(layer.norms or ()):
        if not isinstance(norm, _BatchNorm):
            raise ValueError(f"norm {i}{where} must be a BatchNorm, got {type(norm).__name__}")
    if not chosen:
        return None
    for what, parameters in (("weights", layer.weights), ("biases", layer.biases)):
        if parameters is not None:
            parameters.check_plain(f"cannot replace units{where} in its {what}")
    units = list(layer.units)
    drawn = draw_units({number: units[number] for number in chosen}, pool, rng, where)
    for number, unit in drawn.items():
        units[number] = unit
    layout = replace(layer.layout, units=tuple(units))
    geometry = getattr(layer, "geometry", None)
    return _Change(
        kept=tuple(u for u in range(len(units)) if u not in drawn),
        layout=layout,
        geometry=None if geometry is None else replace(geometry, layout=layout),
    )


def _check_numbers(numbers: Iterable[int], count: int, where: str) -> list[int]:
    try:
        chosen = sorted(operator.index(number) for number in numbers)
    except TypeError as error:
        raise TypeError(f"which{where} must be numbers of units, got {numbers!r}") from error
    for number in chosen:
        if not 0 <= number < count:
            raise ValueError(f"units{where} are numbered from 0 to {count - 1}, got {number}")
    twice = next((a for a, b in pairwise(chosen) if a == b), None)
    if twice is not None:
        raise ValueError(f"unit {twice}{where} is given twice: {chosen}")
    return chosen


@torch.no_grad()
def _apply(change: _Change, layer: StackedLayer) -> None:
    """Gives the layer its new units, with weights from torch's generator."""
    like = layer.weights[0]
    # On the CPU: the same weights for a seed on every device.
    weights = make_weights(change.layout, dtype=like.dtype)
    biases = None if layer.biases is None else make_biases(change.layout, dtype=like.dtype)
    initialise(change.layout, weights, biases)
    for i, (old, new) in enumerate(zip(layer.layout.levels, change.layout.levels, strict=True)):
        weights[i] = _merged_weight(layer.weights[i], weights[i], old, new, change.kept)
        channels = _kept_channels(old, new, change.kept)
        if biases is not None:
            biases[i] = _merged(layer.biases[i], biases[i], channels)
        if layer.norms is not None:
            _change_norm(layer.norms[i], new.out_channels, channels)
    for parameters in (weights, biases):
        if parameters is not None:
            parameters.train(layer.weights.training)
    layer.weights, layer.biases = weights, biases
    layer.layout = change.layout
    if change.geometry is not None:
        layer.geometry = change.geometry


def _merged_weight(
    old: nn.Parameter, fresh: Tensor, before: Level, after: Level, kept: Iterable[int]
) -> nn.Parameter:
    """``fresh`` with the blocks of the units that stay."""
    values = fresh.detach().to(old.device)
    own, theirs = after.unpack(values), before.unpack(old)
    for unit in kept:
        own[unit].copy_(theirs[unit])
    return nn.Parameter(values, old.requires_grad)


def _kept_channels(before: Level, after: Level, kept: Iterable[int]) -> list[tuple[slice, slice]]:
    """Where the outputs of the units that stay were, and where they are."""
    ends = [torch.tensor(level.out_widths).cumsum(0).tolist() for level in (before, after)]
    width = after.out_widths
    return [tuple(slice(end[unit] - width[unit], end[unit]) for end in ends) for unit in kept]


def _merged(old: Tensor, fresh: Tensor, channels: list[tuple[slice, slice]]) -> Tensor:
    """``fresh`` ``[C]`` with the values of the units that stay, a parameter where ``old`` is."""
    values = fresh.detach().to(old.device)
    for was, now in channels:
        values[now] = old[was]
    return nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values


def _change_norm(norm: _BatchNorm, width: int, channels: list[tuple[slice, slice]]) -> None:
    norm.num_features = width
    for name, start in _FRESH_NORM.items():
        old = getattr(norm, name)
        if old is not None:
            setattr(norm, name, _merged(old, old.new_full((width,), start), channels))
