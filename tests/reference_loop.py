"""A stacked layer in plain PyTorch, unit by unit, with nothing of the package's own arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as torch_functional
from reference_cases import Case, ConvCase, layout_of
from torch import Tensor

Tensors = dict[str, list[Tensor]]

#: Where an activation's derivative jumps: a gradient there is one value or another, by a rounding.
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0)}


@dataclass
class Condition:
    """What makes a comparison with the loop a matter of luck, over all levels of all units.

    Both are relative to the size of what is summed up to a value, the root of the sum of squares.
    ``kink_distance``: how near a pre-activation comes to a kink. ``spread``: the smallest standard
    deviation that a channel has before its norm (to its mean, too).
    """

    kink_distance: float = math.inf
    spread: float = math.inf

    def see_activation(self, name: str, z: Tensor, size: Tensor) -> None:
        for kink in KINKS.get(name, ()):
            distance = (z - kink).abs()
            # Exactly at a kink are sums of zeros, the same in every order.
            share = (distance / (size + abs(kink)))[distance > 0]
            self.kink_distance = min(self.kink_distance, smallest(share))

    def see_norm(self, z: Tensor, size: Tensor) -> None:
        std = z.std((0, 2, 3), correction=0)
        share = std / (z.mean((0, 2, 3)).abs() + size.square().mean((0, 2, 3)).sqrt())
        self.spread = min(self.spread, smallest(share[std > 0]))


def smallest(x: Tensor) -> float:
    return x.min().item() if x.numel() else math.inf


def loop(case: Case, tensors: Tensors, fixed_statistics: bool = False) -> Tensor:
    """What the layer gives: unit after unit, level after level, in PyTorch's own operators. Batch
    normalisation where ``tensors`` has gammas; with ``fixed_statistics`` no gradient goes through
    its mean and variance."""
    outputs = [
        _run_unit(case, tensors, unit, fixed_statistics)
        for unit in range(layout_of(case).num_units)
    ]
    y = _joined(case, outputs)
    return _activation(case.residual, y + tensors["residual"][0]) if case.residual else y


def condition(case: Case, tensors: Tensors) -> Condition:
    """How well results for these tensors can be compared."""
    seen = Condition()
    outputs = [_run_unit(case, tensors, u, seen=seen) for u in range(layout_of(case).num_units)]
    if case.residual:
        y, residual = _joined(case, outputs), tensors["residual"][0]
        seen.see_activation(case.residual, y + residual, y.abs() + residual.abs())
    return seen


def _joined(case: Case, outputs: list[Tensor]) -> Tensor:
    """The units' outputs side by side; with ``shuffle`` one channel at a time, of each unit in turn
    that has one left."""
    dim = _channel_dim(case)
    if not case.shuffle:
        return torch.cat(outputs, dim)
    left = [list(y.split(1, dim)) for y in outputs]
    channels = []
    while any(left):
        channels += [unit.pop(0) for unit in left if unit]
    return torch.cat(channels, dim)


def _channel_dim(case: Case) -> int:
    return 1 if isinstance(case, ConvCase) else -1


def _run_unit(case, t, index, fixed_statistics=False, seen=None):
    layout = layout_of(case)
    spec, before = layout.units[index], layout.units[:index]
    first = sum(u.widths[0] for u in before)
    h = t["x"][0].narrow(_channel_dim(case), first, spec.widths[0])
    for level in range(spec.depth):
        first = sum(u.widths[level + 1] for u in before)
        channels = slice(first, first + spec.widths[level + 1])
        weight, run = _linear_map(case, t, index, level)
        bias = t["biases"][level][channels] if t["biases"] else None
        z = run(h, weight, bias)
        if seen:
            squares = run(h.square(), weight.square(), None if bias is None else bias.square())
            size = squares.sqrt()
        if t["gammas"]:
            gamma, beta = t["gammas"][level][channels], t["betas"][level][channels]
            if seen:
                seen.see_norm(z, size)
                size = 1 + size / (z.std((0, 2, 3), keepdim=True) + 1e-300)
            z = _batch_norm(z, gamma, beta, fixed_statistics)
        name = case.out_activation if level == spec.depth - 1 else case.activation
        if seen:
            seen.see_activation(name, z, size)
        h = _activation(name, z)
    return h


def _linear_map(case, t, index, level):
    """A unit's weight of one level, and the function ``(x, weight, bias)`` that it is for."""
    layout = layout_of(case)

    def shape(unit):
        c_in, c_out = unit.widths[level : level + 2]
        k, groups = unit.level_kernels(layout.kernel_size)[level], unit.level_groups[level]
        return (c_out, c_in // groups, k, k) if k else (c_out, c_in)

    mine = shape(layout.units[index])
    first = sum(math.prod(shape(u)) for u in layout.units[:index])
    weight = t["weights"][level].reshape(-1)[first : first + math.prod(mine)].view(mine)
    if isinstance(case, ConvCase):
        stride = case.stride if level == 0 else 1
        same = case.dilation * (mine[-1] - 1) // 2
        pad = same if case.padding == "same" else case.padding
        config = (stride, pad, case.dilation, layout.units[index].level_groups[level])
        return weight, lambda x, w, b: torch_functional.conv2d(x, w, b, *config)
    return weight, torch_functional.linear


def _batch_norm(h: Tensor, gamma: Tensor, beta: Tensor, fixed_statistics: bool) -> Tensor:
    gamma = gamma.contiguous()  # as in backends/_by_level.py
    mean, var = None, None
    if fixed_statistics:
        mean = h.detach().mean((0, 2, 3))
        var = h.detach().var((0, 2, 3), unbiased=False)
    return torch_functional.batch_norm(h, mean, var, gamma, beta, not fixed_statistics)


def _activation(name: str, x: Tensor) -> Tensor:
    return x if name == "identity" else getattr(torch_functional, name)(x)
