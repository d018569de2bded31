"""The benchmark's layers as data, and what one of them needs to run."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bunit_kernels import StackedConv2d, StackedLinear, UnitSpec

#: What of a layer is timed:
#: ``eval``        the whole layer in eval mode, batch norm folded where the peer can,
#: ``level``       forward of its first level alone (one convolution or linear map),
#: ``level_grad``  forward and backward of that level, gradients of input and parameters,
#: ``train``       forward and backward of the whole layer in training mode (batch statistics).
DIRECTIONS = ("eval", "level", "level_grad", "train")


@dataclass(frozen=True)
class Workload:
    """One layer and its input. ``size`` is the side of a square image, ``None`` for linear units.

    ``units`` is one spec for ``num_units`` equal units, or ``"paper"`` for as many drawn from
    PAPER_POOL.
    """

    name: str
    units: str
    num_units: int
    batch: int
    size: int | None = None
    stride: int = 1

    @property
    def linear(self) -> bool:
        return self.size is None

    @property
    def uniform(self) -> bool:
        return self.units != "paper"

    def describe(self) -> str:
        units = "of PAPER_POOL" if self.units == "paper" else self.units
        text = f"{self.num_units} units {units}, N={self.batch}"
        if self.size:
            text += f", {self.size}x{self.size}"
        return text + (f", stride {self.stride}" if self.stride > 1 else "")

    def small(self) -> Workload:
        """The same kind of layer at a size that takes no time."""
        size = None if self.linear else min(self.size, 9)
        units = min(self.num_units, 8 if self.units == "paper" else 3)
        return replace(self, num_units=units, batch=min(self.batch, 2), size=size)

    def make_layer(self) -> StackedConv2d | StackedLinear:
        if self.linear:
            return StackedLinear(self.units, self.num_units)
        if self.uniform:
            return StackedConv2d(self.units, self.num_units, stride=self.stride)
        return StackedConv2d(UnitSpec.sample(self.num_units, seed=0), stride=self.stride)


WORKLOADS = (
    Workload("2-4-2_n128_32x32", "2-4-2", 64, 128, 32),
    Workload("2-4-2_n128_16x16", "2-4-2", 128, 128, 16),
    Workload("2-4-2_n128_8x8", "2-4-2", 256, 128, 8),
    Workload("2-4-2_n1_56x56", "2-4-2", 64, 1, 56),
    Workload("2-4-2_n32_28x28", "2-4-2", 64, 32, 28),
    Workload("2-4-4_n128_32x32_s2", "2-4-4", 64, 128, 32, stride=2),
    Workload("hybrid_n64_32x32", "paper", 60, 64, 32),
    Workload("4-8-4_n32_28x28", "4-8-4", 64, 32, 28),
    Workload("8-16-8_n32_28x28", "8-16-8", 32, 32, 28),
    Workload("16-16-16_n32_28x28", "16-16-16", 16, 32, 28),
    Workload("32-32-32_n32_28x28", "32-32-32", 8, 32, 28),
    Workload("inverted_n32_28x28", "4-24-24-4:k1,3,1:g1,24,1", 16, 32, 28),
    Workload("linear_20-10-1_n1", "20-10-1", 20, 1),
    Workload("linear_20-10-1_n8", "20-10-1", 20, 8),
    Workload("linear_20-10-1_n32", "20-10-1", 20, 32),
    Workload("linear_4-8-4_n128", "4-8-4", 64, 128),
    Workload("linear_4-8-4_n1024", "4-8-4", 64, 1024),
    Workload("linear_16-32-16_n128", "16-32-16", 64, 128),
    Workload("linear_16-32-16_n1024", "16-32-16", 64, 1024),
    Workload("linear_64-64-64_n128", "64-64-64", 16, 128),
    Workload("linear_64-64-64_n1024", "64-64-64", 16, 1024),
)


@dataclass
class Case:
    """A workload in one direction with its layer, input and, for a backward pass, the gradient of
    its output. The same name gives the same numbers in every process."""

    workload: Workload
    direction: str
    layer: StackedConv2d | StackedLinear
    x: Tensor
    grad: Tensor | None

    @property
    def backward(self) -> bool:
        return self.direction in ("level_grad", "train")

    @property
    def level_only(self) -> bool:
        return self.direction.startswith("level")

    @property
    def depth(self) -> int:
        """Number of levels that run."""
        return 1 if self.level_only else self.layer.layout.depth

    def sizes(self) -> list[int]:
        """Pixels of the input and after each level that runs."""
        if self.workload.linear:
            return [1] * (self.depth + 1)
        side = self.workload.size
        sizes = self.layer.geometry.level_sizes(side, side)
        return [h * w for h, w in sizes[: self.depth + 1]]

    def flops(self) -> int:
        """2 x multiply-adds of the convolutions or linear maps; a backward pass has twice those of
        the forward pass. Norms and activations are not counted."""
        levels = self.layer.layout.levels[: self.depth]
        pixels = self.sizes()[1:]
        macs = sum(sum(v.weight_sizes) * p for v, p in zip(levels, pixels, strict=True))
        return 2 * macs * self.workload.batch * (3 if self.backward else 1)

    def bytes(self) -> int:
        """Least memory traffic: input read and output written once; for a backward pass also input
        and output gradient read and input gradient written. Weights are left out (they are small),
        and so is what batch statistics add (a second pass over the data)."""
        levels, sizes = self.layer.layout.levels[: self.depth], self.sizes()
        x = levels[0].in_channels * sizes[0]
        y = levels[-1].out_channels * sizes[-1]
        values = 3 * x + 2 * y if self.backward else x + y
        return values * self.workload.batch * self.x.element_size()


def make_case(workload: Workload, direction: str, device: str = "cpu") -> Case:
    torch.manual_seed(zlib.crc32(f"{workload.name} {direction}".encode()))
    layer = workload.make_layer()
    for norm in layer.norms or ():
        _randomise(norm)
    layer = layer.to(device).train(direction == "train")
    shape = [workload.batch, layer.layout.in_channels]
    if not workload.linear:
        shape += [workload.size] * 2
    case = Case(workload, direction, layer, torch.randn(shape, device=device), None)
    if case.backward:
        channels = layer.layout.levels[case.depth - 1].out_channels
        side = [] if workload.linear else [math.isqrt(case.sizes()[-1])] * 2
        case.grad = torch.randn([workload.batch, channels, *side], device=device)
    return case


@torch.no_grad()
def _randomise(norm: torch.nn.Module) -> None:
    """Norms as after some training, so that folding them has an effect that a check can see."""
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_(0, 0.2)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
