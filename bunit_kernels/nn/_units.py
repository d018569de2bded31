"""Between a packed stacked layer and the loop over units that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..activations import ACTIVATIONS, activation_name

#: Classes of the norms that a unit may have.
NormTypes = tuple[type[nn.Module], ...]


@torch.no_grad()
def to_units(
    layer: nn.Module,
    make_linear: Callable[[int, int], nn.Module],
    slice_norm: Callable[[nn.Module, slice], nn.Module],
) -> nn.ModuleList:
    """One ``nn.Sequential`` a unit of (linear, [norm,] activation) a level, with copies of the
    layer's parameters. ``make_linear(unit, level)`` builds the bare convolution or linear map,
    ``slice_norm(norm, channels)`` a unit's own norm."""
    layout = layer.layout
    weights, biases = layer.weights(), layer.read_biases()
    units = []
    for u in range(layout.num_units):
        modules: list[nn.Module] = []
        for i, level in enumerate(layout.levels):
            first = sum(level.out_widths[:u])
            channels = slice(first, first + level.out_widths[u])
            linear = make_linear(u, i)
            linear.weight.copy_(level.unpack(weights[i])[u])
            if biases:
                linear.bias.copy_(biases[i][channels])
            modules.append(linear)
            if layer.norms is not None:
                modules.append(slice_norm(layer.norms[i], channels))
            last = i == layout.depth - 1
            name = layer.out_activation if last else layer.activation
            modules.append(ACTIVATIONS[name].module())
        units.append(nn.Sequential(*modules))
    units = nn.ModuleList(units).train(layer.training)
    for i, norm in enumerate(layer.norms or ()):  # one may be frozen
        for unit in units:
            unit[3 * i + 1].train(norm.training)
    return units


class UnitChain:
    """The levels read off one unit given as a (possibly nested) ``nn.Sequential``.

    Raises:
        ValueError: something other than (linear, optional norm, optional activation) a level.
    """

    def __init__(self, unit: nn.Module, linear: type[nn.Module], norms: NormTypes, where: str):
        self.training = unit.training
        self.linears: list[nn.Module] = []
        self.norms: list[nn.Module | None] = []
        self.activations: list[str] = []
        for module in _flatten(unit):
            if isinstance(module, linear):
                self.linears.append(module)
                self.norms.append(None)
                self.activations.append("identity")
            elif not self.linears:
                raise ValueError(f"{where} must start with {linear.__name__}, got {module}")
            elif type(module) in norms and self._open():
                self.norms[-1] = module
            elif type(module) not in norms and self.activations[-1] == "identity":
                try:
                    self.activations[-1] = activation_name(module)
                except ValueError as error:
                    raise ValueError(f"{where} holds {module}: {error}") from None
            else:
                raise ValueError(f"{where} is not a chain of levels: {module} is out of place")
        if not self.linears:
            raise ValueError(f"{where} holds no {linear.__name__}")

    def _open(self) -> bool:
        """Whether a norm may stand here."""
        return self.norms[-1] is None and self.activations[-1] == "identity"

    @property
    def has_norm(self) -> bool:
        return self.norms[0] is not None

    @property
    def has_bias(self) -> bool:
        return self.linears[0].bias is not None

    def check(self, where: str) -> None:
        """Raises ``ValueError`` where levels differ in what a stacked layer has one of."""
        if any((norm is not None) != self.has_norm for norm in self.norms):
            raise ValueError(f"{where} has a norm after some levels and none after others")
        if any((linear.bias is not None) != self.has_bias for linear in self.linears):
            raise ValueError(f"{where} has a bias in some levels and none in others")
        if len(set(self.activations[:-1])) > 1:
            raise ValueError(f"{where} has different hidden activations {self.activations[:-1]}")


def _flatten(module: nn.Module) -> Iterable[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flatten(child)
    elif not isinstance(module, nn.Identity):
        yield module


def read_units(
    units: Iterable[nn.Module], linear: type[nn.Module], norms: NormTypes
) -> list[UnitChain]:
    """The units' chains, checked to fit into one stacked layer.

    Raises:
        ValueError: no unit, a unit that is no chain of levels, or units that differ in depth,
            norm, bias or activation.
    """
    units = list(units)
    if not units:
        raise ValueError("a stacked layer needs at least one unit, got an empty list")
    chains = [UnitChain(unit, linear, norms, f"unit {i}") for i, unit in enumerate(units)]
    first = chains[0]
    for i, chain in enumerate(chains):
        chain.check(f"unit {i}")
        for what, mine, theirs in (
            ("levels", len(chain.linears), len(first.linears)),
            ("norms", chain.has_norm, first.has_norm),
            ("biases", chain.has_bias, first.has_bias),
            ("activations", chain.activations, first.activations),
        ):
            if mine != theirs:
                raise ValueError(
                    f"unit {i} has {what} {mine}, unit 0 has {theirs}; they must agree"
                )
    return chains


def the_same(values: Iterable, what: str):
    """The one value that all units share.

    Raises:
        ValueError: they differ.
    """
    distinct = sorted(set(values), key=str)
    if len(distinct) != 1:
        raise ValueError(f"all units must share one {what}, got {distinct}")
    return distinct[0]
