"""``StackedLinear``: many small multilayer perceptrons side by side, run as one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx, nn

from .. import functional as F
from ..activations import activate
from ..layout import StackLayout, Units, resolve_units
from ..units import UnitSpec
from ._fx_leaf import leaf_call
from ._norms import LINEAR_NORMS, check_splits, slice_norm
from ._stacked_layer import StackedLayer
from ._units import read_units, to_units


class StackedLinear(StackedLayer):
    """A stacked layer of linear units: the features are split among the units in order, each unit
    runs its levels (linear map, norm, activation), and the outputs are concatenated.

    Shape: [..., in_features] -> [..., out_features].

    Args:
        units: ``"4-8-4"`` for ``num_units`` equal units, or one spec a unit, all of one depth.
        num_units: how many, where ``units`` is a single spec.
        shuffle: whether output features go round robin, as for :class:`StackedConv2d`.
        norm: ``"batch"`` for BatchNorm over all leading dimensions after every linear map, or
            ``None``.
        activation: after each hidden level: relu, relu6, leaky_relu, gelu, silu, hardswish or
            identity.
        out_activation: after the last level.
        bias: whether the linear maps have one; ``None`` for "where there is no norm".
        device, dtype: of the parameters.

    Raises:
        ValueError: as :class:`StackedConv2d`, and where a spec names a kernel size.
    """

    _norm_class = nn.BatchNorm1d

    def __init__(
        self,
        units: Units,
        num_units: int | None = None,
        *,
        shuffle: bool = False,
        norm: str | None = None,
        activation: str = "relu",
        out_activation: str = "relu",
        bias: bool | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            StackLayout(resolve_units(units, num_units), None, shuffle),
            norm=norm,
            activation=activation,
            out_activation=out_activation,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    @property
    def in_features(self) -> int:
        return self.layout.in_channels

    @property
    def out_features(self) -> int:
        return self.layout.out_channels

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            return leaf_call(self, x)
        names = {"activation": self.activation, "out_activation": self.out_activation}
        if self.norms is None:
            weights, biases = self.weights(), self.read_biases()
            return F.stacked_unit_linear(x, weights, biases, units=self.layout, **names)
        if self.norms_are(training=False):
            weights, biases = self.folded()
            return F.stacked_unit_linear(x, weights, biases, units=self.layout, **names)
        weights = self.weights()
        biases = self.read_biases() or [None] * len(weights)
        for i, (stage, norm) in enumerate(zip(self.layout.stages, self.norms, strict=True)):
            z = F.stacked_linear(x, weights[i], biases[i], units=stage)
            z = norm(z.reshape(-1, z.shape[-1])).view(z.shape)
            x = activate(self.level_activation(i), z)
        return self.layout.ordered(x, -1)

    def to_units(self) -> nn.ModuleList:
        """The loop this layer stands for: one ``nn.Sequential`` of (``Linear``, [``BatchNorm1d``,]
        activation) a level for each unit, with copies of the parameters. Its ``state_dict`` loads
        into this layer, whose output is ``torch.cat(outputs, -1)[..., layout.shuffle_index]``. A
        norm put in the place of a layer's is of the same class and options in the loop.

        Raises:
            ValueError: a norm is none of BatchNorm1d, SyncBatchNorm and Identity.
        """
        check_splits(self.norms or (), LINEAR_NORMS)
        factory = {"device": self.weights[0].device, "dtype": self.weights[0].dtype}

        def linear(unit: int, level: int) -> nn.Linear:
            like = self.layout.levels[level].units[unit]
            return nn.Linear(like.c_in, like.c_out, bias=self.biases is not None, **factory)

        return to_units(self, linear, slice_norm)

    @classmethod
    def from_units(cls, units: Iterable[nn.Module], *, shuffle: bool = False) -> StackedLinear:
        """The layer that a loop over ``units`` stands for, with copies of their parameters.

        Args:
            units: one flat or nested ``nn.Sequential`` a unit of ``nn.Linear``, optional
                ``nn.BatchNorm1d`` (or SyncBatchNorm) and optional activation a level.
            shuffle: as for the layer; a loop does not say in which order its outputs go on.

        Raises:
            ValueError: a unit is no such chain, or units differ in what a layer has one of.
            TypeError: ``shuffle`` is no bool.
        """
        chains = read_units(units, nn.Linear, LINEAR_NORMS)
        first = chains[0]
        weight = first.linears[0].weight
        layer = cls(
            [_read_linears(chain.linears, u) for u, chain in enumerate(chains)],
            shuffle=shuffle,
            norm="batch" if first.has_norm else None,
            activation=first.activations[0] if len(first.activations) > 1 else "relu",
            out_activation=first.activations[-1],
            bias=first.has_bias,
            device=weight.device,
            dtype=weight.dtype,
        )
        return layer._copy_units(chains)


def _read_linears(linears: list[nn.Linear], unit: int) -> UnitSpec:
    for level in range(1, len(linears)):
        if linears[level].in_features != linears[level - 1].out_features:
            raise ValueError(
                f"unit {unit}, level {level + 1} takes {linears[level].in_features} features, the "
                f"level before gives {linears[level - 1].out_features}"
            )
    return UnitSpec((linears[0].in_features, *(linear.out_features for linear in linears)))
