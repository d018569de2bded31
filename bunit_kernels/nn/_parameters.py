"""The packed weights and biases of a stacked layer: making, initialising, loading them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..layout import StackLayout, UnitLevel


def make_weights(layout: StackLayout, **factory) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(torch.empty(level.weight_shape, **factory)) for level in layout.levels
    )


def make_biases(layout: StackLayout, **factory) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(torch.empty(level.out_channels, **factory)) for level in layout.levels
    )


@torch.no_grad()
def initialise(layout: StackLayout, weights: nn.ParameterList, biases: nn.ParameterList | None):
    """What ``nn.Conv2d`` and ``nn.Linear`` start from, unit by unit: uniform within
    ``1 / sqrt(fan_in)``, weights and biases alike, ``fan_in`` that of the unit's own level."""
    for i, level in enumerate(layout.levels):
        bounds = [fan_in(unit) ** -0.5 for unit in level.units]
        _uniform(weights[i], level.uniform, level.weight_sizes, bounds)
        if biases is not None:
            _uniform(biases[i], level.uniform, level.out_widths, bounds)


def fan_in(unit: UnitLevel) -> int:
    return math.prod(unit.weight_shape[1:])


def _uniform(parameter: Tensor, uniform: bool, sizes: tuple[int, ...], bounds: list[float]):
    if uniform:
        parameter.uniform_(-bounds[0], bounds[0])
        return
    for part, bound in zip(parameter.view(-1).split(sizes), bounds, strict=True):
        part.uniform_(-bound, bound)


def pack_loop_state(
    module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata, _strict, _missing,
    _unexpected, errors: list[str],
) -> None:  # fmt: skip
    """A load hook: turns the state of a loop over units (``to_units()``), which lies under
    ``<unit>.<position>.<name>``, into the packed state of ``module``, in place.

    A state with no such key is left alone. Where some are missing or of a wrong shape, ``errors``
    says which, and the layer's own values stand in.
    """
    parts = list(loop_parts(module))
    if not any(prefix + key in state for _, shapes, _ in parts for key in shapes):
        return
    for target, shapes, join in parts:
        tensors = {key: state.pop(prefix + key, None) for key in shapes}
        problems = [
            f"{prefix}{key} is missing in the state of a loop over units, expected shape {shape}"
            if tensors[key] is None
            else f"size mismatch for {prefix}{key}: copying a param with shape "
            f"{tuple(tensors[key].shape)} from checkpoint, the shape in that unit is {shape}"
            for key, shape in shapes.items()
            if tensors[key] is None or tensors[key].shape != shape
        ]
        if not problems:
            state[prefix + target] = join(list(tensors.values()))
        elif not target.endswith("num_batches_tracked"):  # old checkpoints have no such counts
            errors += problems
            state[prefix + target] = module.state_dict()[target]


def loop_parts(module: nn.Module):
    """For each packed tensor: its key, the loop's keys that it is made of with their shapes, and
    how it is made."""
    layout: StackLayout = module.layout
    step = 2 if module.norms is None else 3
    units = range(layout.num_units)
    for i, level in enumerate(layout.levels):

        def keys(position: int, name: str, shapes: list, level: int = i) -> dict[str, tuple]:
            return {f"{u}.{level * step + position}.{name}": shapes[u] for u in units}

        vectors = [(width,) for width in level.out_widths]
        shapes = [unit.weight_shape for unit in level.units]
        yield f"weights.{i}", keys(0, "weight", shapes), level.pack
        if module.biases is not None:
            yield f"biases.{i}", keys(0, "bias", vectors), torch.cat
        if module.norms is not None:
            for name in ("weight", "bias", "running_mean", "running_var"):
                yield f"norms.{i}.{name}", keys(1, name, vectors), torch.cat
            counts = keys(1, "num_batches_tracked", [()] * len(units))
            yield f"norms.{i}.num_batches_tracked", counts, max
