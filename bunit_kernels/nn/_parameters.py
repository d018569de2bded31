"""The packed weights and biases of a stacked layer: making, initialising, loading them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layout import Level, StackLayout


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
        bounds = [fan_in(level, unit) ** -0.5 for unit in range(len(level.blocks))]
        _uniform(weights[i], level.uniform, level.weight_sizes, bounds)
        if biases is not None:
            _uniform(biases[i], level.uniform, level.out_widths, bounds)


def fan_in(level: Level, unit: int) -> int:
    c_in, _, k = level.blocks[unit]
    return c_in * (1 if k is None else k * k)


def _uniform(parameter: Tensor, uniform: bool, sizes: tuple[int, ...], bounds: list[float]):
    if uniform:
        parameter.uniform_(-bounds[0], bounds[0])
        return
    for part, bound in zip(parameter.view(-1).split(sizes), bounds, strict=True):
        part.uniform_(-bound, bound)


def pack_loop_state(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    """A load hook: turns the state of a loop over units (``to_units()``), which lies under
    ``<unit>.<position>.<name>``, into the packed state of ``module``, in place.

    Left alone where the state is packed already, or is incomplete or of other shapes: the ordinary
    load then reports the keys that are missing or unexpected.
    """
    layout: StackLayout = module.layout
    step = 2 if module.norms is None else 3
    found: dict[str, Tensor] = {}
    used: list[str] = []

    def collect(position: int, name: str, shapes: list[tuple[int, ...]]) -> list[Tensor] | None:
        keys = [f"{prefix}{unit}.{position}.{name}" for unit in range(layout.num_units)]
        tensors = [state.get(key) for key in keys]
        if any(t is None or t.shape != s for t, s in zip(tensors, shapes, strict=True)):
            return None
        used.extend(keys)
        return tensors

    for i, level in enumerate(layout.levels):
        units = range(layout.num_units)
        vectors = [(width,) for width in level.out_widths]
        weights = collect(i * step, "weight", [level.block_shape(u) for u in units])
        if weights is None:
            return
        found[f"{prefix}weights.{i}"] = level.pack(weights)
        names = [] if module.biases is None else [(i * step, "bias", f"biases.{i}")]
        if module.norms is not None:
            names += [
                (i * step + 1, name, f"norms.{i}.{name}")
                for name in ("weight", "bias", "running_mean", "running_var")
            ]
        for position, name, target in names:
            tensors = collect(position, name, vectors)
            if tensors is None:
                return
            found[prefix + target] = torch.cat(tensors)
        if module.norms is not None:
            counts = collect(i * step + 1, "num_batches_tracked", [()] * layout.num_units)
            if counts is not None:
                found[f"{prefix}norms.{i}.num_batches_tracked"] = max(counts)
    for key in used:
        state.pop(key, None)
    state.update(found)
