"""``StackedConv2d``: many small convolutional networks side by side, run as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, fx, nn

from .. import functional as F
from ..activations import activate
from ..layout import ConvGeometry, StackLayout, Units, resolve_units
from ..units import UnitSpec
from ._fx_leaf import leaf_call
from ._norms import CONV_NORMS, check_splits, slice_norm
from ._stacked_layer import StackedLayer, update_running
from ._units import read_units, the_same, to_units


class StackedConv2d(StackedLayer):
    """A stacked layer of convolutional units.

    The input's channels are split among the units in order, each unit runs its levels
    (convolution, norm, activation) on its share, and the outputs are concatenated. No weight joins
    two units.

    Shape: [N, in_channels, H, W] -> [N, out_channels, H', W'], the memory format kept.

    Args:
        units: ``"2-4-2"`` for ``num_units`` equal units, or one spec a unit; all of one depth,
            widths, kernel sizes and groups may differ (:class:`~bunit_kernels.UnitSpec`).
        num_units: how many, where ``units`` is a single spec.
        kernel_size: of units that name none.
        stride: of each unit's first level.
        padding: ``"same"`` (``dilation * (k - 1) / 2`` on each side of every level, ``k`` its own
            kernel size, odd, so that a size becomes ``ceil(size / stride)``), or an int for every
            level.
        dilation: of every level.
        shuffle: whether output channels go round robin instead of unit after unit: the first of
            every unit, then the second of every unit that has one, and so on (ShuffleNet's channel
            shuffle with one group a unit, where all give as many; :mod:`bunit_kernels.shuffle`).
            Parameters keep the units' order.
        norm: ``"batch"`` for BatchNorm after every convolution, or ``None``.
        activation: after each hidden level: relu, relu6, leaky_relu, gelu, silu, hardswish or
            identity.
        out_activation: after the last level.
        bias: whether convolutions have one; ``None`` for "where there is no norm".
        device, dtype: of the parameters.

    Attributes:
        weights, biases: packed parameters, one a level (:mod:`bunit_kernels.layout`).
        norms: ``nn.ModuleList`` of ``nn.BatchNorm2d`` over all units' channels, one a level: the
            same as one norm a unit, since a BatchNorm treats every channel by itself.

    Raises:
        ValueError: no unit, a spec that does not parse, units of different depth, an unknown norm
            or activation, padding that gives units outputs of different sizes. ``forward`` raises
            what :func:`bunit_kernels.functional.stacked_conv2d` raises.
        TypeError: ``shuffle`` is no bool.
    """

    _norm_class = nn.BatchNorm2d

    def __init__(
        self,
        units: Units,
        num_units: int | None = None,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | str = "same",
        dilation: int = 1,
        shuffle: bool = False,
        norm: str | None = "batch",
        activation: str = "relu",
        out_activation: str = "relu",
        bias: bool | None = None,
        device=None,
        dtype=None,
    ):
        layout = StackLayout(resolve_units(units, num_units), kernel_size, shuffle)
        geometry = ConvGeometry(layout, stride, padding, dilation)
        super().__init__(
            layout,
            norm=norm,
            activation=activation,
            out_activation=out_activation,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.geometry = geometry

    def set_shuffle(self, shuffle: bool) -> None:
        super().set_shuffle(shuffle)
        self.geometry = replace(self.geometry, layout=self.layout)

    @property
    def stride(self) -> int:
        return self.geometry.stride

    @property
    def padding(self) -> int | str:
        return self.geometry.padding

    @property
    def dilation(self) -> int:
        return self.geometry.dilation

    def forward(
        self,
        x: Tensor,  # [N, in_channels, H, W]
        residual: Tensor | None = None,  # [N, out_channels, H', W']
        residual_activation: str = "identity",
    ) -> Tensor:
        """The layer's output; with ``residual`` ``residual_activation(output + residual)``, where
        ``residual_activation`` is ``"identity"`` or ``"relu"``; a residual is in the order of the
        output, shuffled or not."""
        if isinstance(x, fx.Proxy):
            return leaf_call(self, x, residual, residual_activation)
        end = {"residual": residual, "residual_activation": residual_activation}
        names = {"activation": self.activation, "out_activation": self.out_activation}
        if self.norms is None:
            return F.stacked_unit_conv2d(
                x, self.weights(), self.read_biases(), units=self.geometry, **names, **end
            )
        if self.biases is None and self.norms_are(training=True):
            return self._forward_train(x, names, end)
        if self.norms_are(training=False):
            weights, biases = self.folded()
            return F.stacked_unit_conv2d(x, weights, biases, units=self.geometry, **names, **end)
        return self._forward_by_level(x, **end)

    def _forward_train(self, x: Tensor, names: dict, end: dict) -> Tensor:
        norms = self.norms
        y, stats = F.stacked_unit_conv2d_train(
            x,
            self.weights(),
            [norm.weight for norm in norms],
            [norm.bias for norm in norms],
            units=self.geometry,
            eps=norms[0].eps,
            **names,
            **end,
        )
        update_running(norms, stats, empty=x.shape[0] == 0)
        return y

    def _forward_by_level(self, x, residual, residual_activation) -> Tensor:
        weights = self.weights()
        biases = self.read_biases() or [None] * len(weights)
        for i, (level, norm) in enumerate(zip(self.geometry.levels, self.norms, strict=True)):
            z = F.stacked_conv2d(x, weights[i], biases[i], units=level)
            x = activate(self.level_activation(i), norm(z))
        x = self.layout.ordered(x, 1)
        return x if residual is None else activate(residual_activation, x + residual)

    def to_units(self) -> nn.ModuleList:
        """The loop this layer stands for: one ``nn.Sequential`` of (``Conv2d``, [``BatchNorm2d``,]
        activation) a level for each unit, with copies of the parameters. Its ``state_dict`` loads
        into this layer. The layer's output is ``torch.cat(outputs, 1)[:, layout.shuffle_index]``.
        A norm put in the place of a layer's is of the same class and options in the loop.

        Raises:
            ValueError: a norm is none of BatchNorm2d, SyncBatchNorm, InstanceNorm2d and Identity.
        """

        def conv(unit: int, level: int) -> nn.Conv2d:
            like = self.layout.levels[level].units[unit]
            return nn.Conv2d(
                like.c_in, like.c_out, like.kernel, self.stride if level == 0 else 1,
                self.geometry.pad(like.kernel), self.dilation, like.groups,
                bias=self.biases is not None, device=self.weights[0].device,
                dtype=self.weights[0].dtype,
            )  # fmt: skip

        check_splits(self.norms or (), CONV_NORMS)
        return to_units(self, conv, slice_norm)

    @classmethod
    def from_units(cls, units: Iterable[nn.Module], *, shuffle: bool = False) -> StackedConv2d:
        """The layer that a loop over ``units`` stands for, with copies of their parameters.

        Args:
            units: one flat or nested ``nn.Sequential`` a unit of ``nn.Conv2d``, optional
                ``nn.BatchNorm2d`` (or SyncBatchNorm, InstanceNorm2d) and optional activation a
                level.
            shuffle: as for the layer; a loop does not say in which order its outputs go on.

        Raises:
            ValueError: a unit is no such chain, or units differ in what a layer has one of.
            TypeError: ``shuffle`` is no bool.
        """
        chains = read_units(units, nn.Conv2d, CONV_NORMS)
        specs = [_read_convs(chain.linears, u) for u, chain in enumerate(chains)]
        first_convs = [chain.linears[0] for chain in chains]
        stride = the_same((conv.stride[0] for conv in first_convs), "stride")
        convs = [conv for chain in chains for conv in chain.linears]
        dilation = the_same((conv.dilation[0] for conv in convs), "dilation")
        same = all(_padding(c) == dilation * (c.kernel_size[0] - 1) / 2 for c in convs)
        padding = (
            "same"
            if same
            else the_same(map(_padding, convs), "padding where not every level keeps the size")
        )
        first = chains[0]
        weight = first.linears[0].weight
        layer = cls(
            specs,
            kernel_size=convs[0].kernel_size[0],
            stride=stride,
            padding=padding,
            dilation=dilation,
            shuffle=shuffle,
            norm="batch" if first.has_norm else None,
            activation=first.activations[0] if len(first.activations) > 1 else "relu",
            out_activation=first.activations[-1],
            bias=first.has_bias,
            device=weight.device,
            dtype=weight.dtype,
        )
        return layer._copy_units(chains)

    def _shape_repr(self) -> list[str]:
        parts = [f"kernel_size={self.layout.kernel_size}", f"stride={self.stride}"]
        if self.padding != "same":
            parts.append(f"padding={self.padding}")
        if self.dilation != 1:
            parts.append(f"dilation={self.dilation}")
        return parts


def _read_convs(convs: list[nn.Conv2d], unit: int) -> UnitSpec:
    for level, conv in enumerate(convs):
        where = f"unit {unit}, level {level + 1}"
        square = all(len(set(v)) == 1 for v in (conv.kernel_size, conv.stride, conv.dilation)) and (
            isinstance(conv.padding, str) or len(set(conv.padding)) == 1
        )
        if not square or conv.padding_mode != "zeros":
            raise ValueError(f"{where} must be square and zero-padded, got {conv}")
        if level > 0 and conv.stride[0] != 1:
            raise ValueError(f"{where} has stride {conv.stride[0]}; only the first level may")
        if level > 0 and conv.in_channels != convs[level - 1].out_channels:
            raise ValueError(
                f"{where} takes {conv.in_channels} channels, the level before gives "
                f"{convs[level - 1].out_channels}"
            )
    widths = (convs[0].in_channels, *(c.out_channels for c in convs))
    return UnitSpec(widths, [c.kernel_size[0] for c in convs], [c.groups for c in convs])


def _padding(conv: nn.Conv2d) -> int:
    if conv.padding == "same":
        return conv.dilation[0] * (conv.kernel_size[0] - 1) // 2
    return 0 if conv.padding == "valid" else conv.padding[0]
