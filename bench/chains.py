"""Units as chains of PyTorch modules, and what those can be merged into."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from workloads import Case

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def chains_of(case: Case) -> nn.ModuleList:
    """One ``nn.Sequential`` a unit with copies of the layer's parameters, in the layer's mode; its
    first module alone where a single level runs."""
    units = case.layer.to_units().train(case.layer.training)
    return nn.ModuleList(unit[:1] for unit in units) if case.level_only else units


def fold(chains: Sequence[nn.Sequential]) -> list[nn.Sequential]:
    """The chains with their batch norms (in eval mode) folded into the convolutions."""
    return [_fold(chain) for chain in chains]


def _fold(chain: nn.Sequential) -> nn.Sequential:
    modules = []
    for module in chain:
        if isinstance(module, NORMS):
            modules[-1] = fuse_conv_bn_eval(modules[-1], module)
        else:
            modules.append(module)
    return nn.Sequential(*modules)


class ByKind(nn.Module):
    """A stack as one chain of grouped convolutions for each kind of unit.

    Equal units are one chain and nothing else. Otherwise each chain gets its units' channels
    gathered, and the outputs are put back in order at the end: two copies of the data, fewer than
    in any form that goes level by level.
    """

    def __init__(self, case: Case, prepare=None):
        super().__init__()
        chains = chains_of(case)
        chains = chains if prepare is None else prepare(chains)
        layout = case.layer.layout
        kinds: dict = {}
        for unit, spec in enumerate(layout.units):
            kinds.setdefault(tuple(map(spec.level, range(case.depth))), []).append(unit)
        self.kinds = list(kinds.values())
        self.chains = nn.ModuleList(merge([chains[u] for u in units]) for units in self.kinds)
        inputs = _channels(layout.levels[0].in_widths)
        outputs = _channels(layout.levels[case.depth - 1].out_widths)
        for i, units in enumerate(self.kinds):
            index = torch.cat([inputs[u] for u in units])
            self.register_buffer(f"index{i}", index.to(case.x.device))
        order = torch.cat([outputs[u] for units in self.kinds for u in units]).argsort()
        self.register_buffer("order", order.to(case.x.device))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.chains) == 1:
            return self.chains[0](x)
        parts = [
            chain(x.index_select(1, getattr(self, f"index{i}")))
            for i, chain in enumerate(self.chains)
        ]
        return torch.cat(parts, 1).index_select(1, self.order)


def _channels(widths: Sequence[int]) -> list[Tensor]:
    return list(torch.arange(sum(widths)).split(list(widths)))


def unit_gradients(module: ByKind, grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``module.parameters()`` -> for each parameter of a unit's chain one flat tensor
    of all units in order."""
    count = len(grads) // len(module.kinds)
    gathered = [[None] * sum(map(len, module.kinds)) for _ in range(count)]
    for i, units in enumerate(module.kinds):
        for j in range(count):
            for unit, part in zip(units, grads[i * count + j].chunk(len(units)), strict=True):
                gathered[j][unit] = part.flatten()
    return [torch.cat(parts) for parts in gathered]


@torch.no_grad()
def merge(chains: Sequence[nn.Sequential]) -> nn.Sequential:
    """Equal chains side by side as one chain of grouped convolutions."""
    merged = []
    for modules in zip(*chains, strict=True):
        if isinstance(modules[0], nn.Conv2d):
            merged.append(_convolution(modules, groups=sum(m.groups for m in modules)))
            merged[-1].weight.copy_(torch.cat([m.weight for m in modules]))
        elif isinstance(modules[0], NORMS):
            merged.append(_norm(modules))
        else:
            merged.append(modules[0])
    return nn.Sequential(*merged).train(chains[0].training)


@torch.no_grad()
def densify(chains: Sequence[nn.Sequential]) -> nn.Sequential:
    """Chains side by side as one chain of dense convolutions or linear maps, block-diagonal."""
    merged = []
    for modules in zip(*chains, strict=True):
        if isinstance(modules[0], nn.Conv2d):
            merged.append(_convolution(modules, groups=1))
            blocks = [block for m in modules for block in m.weight.chunk(m.groups)]
            _fill_blocks(merged[-1].weight, blocks)
        elif isinstance(modules[0], nn.Linear):
            merged.append(_linear(modules))
            _fill_blocks(merged[-1].weight, [m.weight for m in modules])
        elif isinstance(modules[0], NORMS):
            merged.append(_norm(modules))
        else:
            merged.append(modules[0])
    return nn.Sequential(*merged).train(chains[0].training)


def _fill_blocks(weight: Tensor, blocks: Sequence[Tensor]) -> None:
    weight.zero_()
    row = column = 0
    for block in blocks:
        weight[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]


def _convolution(modules: Sequence[nn.Conv2d], groups: int) -> nn.Conv2d:
    first = modules[0]
    conv = nn.Conv2d(
        sum(m.in_channels for m in modules),
        sum(m.out_channels for m in modules),
        first.kernel_size,
        first.stride,
        first.padding,
        first.dilation,
        groups,
        first.bias is not None,
        device=first.weight.device,
    )
    if first.bias is not None:
        conv.bias.copy_(torch.cat([m.bias for m in modules]))
    return conv


def _linear(modules: Sequence[nn.Linear]) -> nn.Linear:
    linear = nn.Linear(
        sum(m.in_features for m in modules),
        sum(m.out_features for m in modules),
        device=modules[0].weight.device,
    )
    linear.bias.copy_(torch.cat([m.bias for m in modules]))
    return linear


def _norm(modules: Sequence[nn.Module]) -> nn.Module:
    norm = copy.deepcopy(modules[0])
    norm.num_features = sum(m.num_features for m in modules)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(torch.cat([getattr(m, name) for m in modules])))
    for name in ("running_mean", "running_var"):
        setattr(norm, name, torch.cat([getattr(m, name) for m in modules]))
    return norm
