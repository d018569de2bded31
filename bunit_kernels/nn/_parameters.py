"""The packed weights and biases of a stacked layer: making, initialising, loading them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..layout import StackLayout, UnitLevel
from ._norms import norm_tensors

_NAMES = tuple(map(str, range(16)))


class PackedParameters(nn.ParameterList):
    """The weights or the biases of a layer, one tensor a level under the names ``"0"``, ``"1"``,
    ...

    A layer reads them by calling the list, so that what hooks on forward calls makes of them is
    made anew each time: ``torch.nn.utils.prune``, the older ``weight_norm`` and ``spectral_norm``
    work with this list as their module and ``"0"`` as the tensor's name.
    """

    def __call__(self) -> list[Tensor]:
        """Without hooks of its own it is no step of a network that hooks of all modules see:
        PyTorch's counter of FLOPs fails at one that returns parameters in inference mode."""
        if self._forward_pre_hooks or self._forward_hooks:
            return nn.Module.__call__(self)  # that of ParameterList refuses
        return self.forward()

    def forward(self) -> list[Tensor]:
        own, size = self._parameters, len(self)
        names = _NAMES[:size] if size <= len(_NAMES) else map(str, range(size))
        return [own[name] if name in own else getattr(self, name) for name in names]

    def __getstate__(self) -> dict:
        """For copies and pickles: what hooks made last, without the graph, which has no copy."""
        return {
            key: value.detach() if isinstance(value, Tensor) else value
            for key, value in vars(self).items()
        }

    def check_plain(self, what: str) -> None:
        """Raises ``ValueError`` where a tensor is made out of others, by a hook or a
        parametrization: ``what`` is what cannot be done then."""
        made = [i for i in range(len(self)) if str(i) not in self._parameters]
        if made:
            raise ValueError(
                f"{what}: tensor {made[0]} of {len(self)} is no parameter of its own but made of "
                "others at each call (torch.nn.utils.prune, weight_norm, parametrize, ...); make "
                "it one first, with prune.remove, remove_weight_norm or "
                "parametrize.remove_parametrizations"
            )


def make_weights(layout: StackLayout, **factory) -> PackedParameters:
    return PackedParameters(
        nn.Parameter(torch.empty(level.weight_shape, **factory)) for level in layout.levels
    )


def make_biases(layout: StackLayout, **factory) -> PackedParameters:
    return PackedParameters(
        nn.Parameter(torch.empty(level.out_channels, **factory)) for level in layout.levels
    )


@torch.no_grad()
def initialise(layout: StackLayout, weights: PackedParameters, biases: PackedParameters | None):
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
            own = module.state_dict()
            if target in own:  # a pruned weight is not
                state[prefix + target] = own[target]


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
            norm = module.norms[i]
            for name in norm_tensors(norm):
                yield f"norms.{i}.{name}", keys(1, name, vectors), torch.cat
            if getattr(norm, "num_batches_tracked", None) is not None:
                counts = keys(1, "num_batches_tracked", [()] * len(units))
                yield f"norms.{i}.num_batches_tracked", counts, max
