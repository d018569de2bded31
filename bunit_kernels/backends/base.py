"""What every backend offers, and the two argument bundles that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..layout import ConvGeometry, StackLayout
from .limits import Limits


@dataclass(frozen=True)
class UnitActivations:
    """Names of the activations of a whole unit: after each hidden level, after the last one, and
    after the residual that is added to the layer's output."""

    hidden: str = "relu"
    out: str = "relu"
    residual: str = "identity"


class BatchStats(NamedTuple):
    """Batch statistics of one level's channels: ``mean`` and unbiased ``var``, [C] each."""

    mean: Tensor
    var: Tensor


class Backend(Protocol):
    """The operations of a stacked layer. Arguments arrive checked and cast.

    Shapes: ``x`` [N, C, H, W] for convolutions, [..., C] for linear units; weights packed as
    :mod:`bunit_kernels.layout` says; a bias, gamma or beta [C of its level]; ``residual`` like the
    output. ``biases`` is empty or holds one tensor a level. Outputs that a residual is added to are
    in the order of ``layout.shuffle_index``, others in the units' order.
    """

    name: str
    limits: Limits  #: of units; what is beyond them ``auto`` gives to others

    def why_not(self, device: torch.device | None, dtype: torch.dtype | None) -> str | None:
        """Why it cannot run there, with the remedy; ``None`` where it can."""

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        activation: str,
    ) -> Tensor:
        """One level: convolution, bias, activation."""

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, layout: StackLayout, activation: str
    ) -> Tensor:
        """One level: block-diagonal linear map, bias, activation."""

    def unit_conv2d(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        geometry: ConvGeometry,
        activations: UnitActivations,
        residual: Tensor | None,
    ) -> Tensor:
        """All levels, no norm."""

    def unit_linear(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        layout: StackLayout,
        activations: UnitActivations,
    ) -> Tensor:
        """All levels, no norm."""

    def unit_conv2d_train(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        gammas: Sequence[Tensor],
        betas: Sequence[Tensor],
        geometry: ConvGeometry,
        activations: UnitActivations,
        eps: float,
        residual: Tensor | None,
    ) -> tuple[Tensor, list[BatchStats]]:
        """All levels, each normalised with its batch statistics; those are returned too."""
