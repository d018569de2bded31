"""Where each unit of a stacked layer finds its channels and its weights.

A *level* of a stacked layer is one block-diagonal convolution (or linear map). A unit is one block
of it, or as many as it has groups there: a group is a smaller unit beside others. The weights are
packed into one tensor, unit after unit, group after group, each block as ``[c_out, c_in, k, k]``:

* all blocks alike: ``[sum(c_out), c_in, k, k]``, which is a grouped convolution's weight
  (``[sum(c_out), c_in]`` for linear units);
* otherwise, where no such shape exists: ``[n, 1, 1, 1]`` (``[n, 1]`` for linear units), flat, but
  with the number of dimensions a weight has, so that filters which exempt vectors from weight
  decay still see a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ._device_index import DeviceIndex, select
from .shuffle import round_robin, shuffled
from .units import UnitSpec

Units = str | UnitSpec | Sequence[str | UnitSpec | Sequence[int]]


def resolve_units(units: Units, num_units: int | None = None) -> tuple[UnitSpec, ...]:
    """One spec repeated ``num_units`` times, or one spec a unit.

    Raises:
        ValueError: no unit, ``num_units`` that contradicts the list, or units of different depth.
    """
    if isinstance(units, (str, UnitSpec)):
        count = 1 if num_units is None else num_units
        if type(count) is not int or count < 1:
            raise ValueError(f"num_units must be an int of at least 1, got {count!r}")
        return (UnitSpec(units),) * count
    specs = tuple(UnitSpec(unit) for unit in units)
    if not specs:
        raise ValueError("a stacked layer needs at least one unit, got an empty list")
    if num_units is not None and num_units != len(specs):
        raise ValueError(f"num_units is {num_units}, but {len(specs)} units are listed")
    depths = {spec.depth: spec for spec in specs}
    if len(depths) > 1:
        example = " and ".join(f"{spec} ({depth} levels)" for depth, spec in sorted(depths.items()))
        raise ValueError(f"all units of a layer must have the same depth, got {example}")
    return specs


class UnitLevel(NamedTuple):
    """One level of one unit: channels in and out, kernel size (``None`` for linear units), groups.

    ``block`` is the shape ``(c_in, c_out, k)`` of one of its groups.
    """

    c_in: int
    c_out: int
    kernel: int | None
    groups: int = 1

    @property
    def block(self) -> tuple[int, int, int | None]:
        return self.c_in // self.groups, self.c_out // self.groups, self.kernel

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As of the unit's own convolution or linear map: ``(c_out, c_in / groups, k, k)``."""
        shape = (self.c_out, self.c_in // self.groups)
        return shape if self.kernel is None else (*shape, self.kernel, self.kernel)


@dataclass(frozen=True)
class Level:
    """One level of all units.

    ``in_widths``, ``out_widths`` and ``weight_sizes`` are each unit's channels and its number of
    weights; ``in_channels`` and ``out_channels`` are sums over units. ``blocks`` are the shapes
    ``(c_in, c_out, k)`` of all blocks in order, one a unit and group. ``uniform`` says whether
    they are alike, which decides ``weight_shape``, the packed weight's.
    """

    units: tuple[UnitLevel, ...]
    in_widths: tuple[int, ...] = field(init=False, repr=False, compare=False)
    out_widths: tuple[int, ...] = field(init=False, repr=False, compare=False)
    weight_sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    in_channels: int = field(init=False, repr=False, compare=False)
    out_channels: int = field(init=False, repr=False, compare=False)
    blocks: tuple[tuple[int, int, int | None], ...] = field(init=False, repr=False, compare=False)
    uniform: bool = field(init=False, repr=False, compare=False)
    weight_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)

        put("in_widths", tuple(unit.c_in for unit in self.units))
        put("out_widths", tuple(unit.c_out for unit in self.units))
        put("weight_sizes", tuple(math.prod(unit.weight_shape) for unit in self.units))
        put("in_channels", sum(self.in_widths))
        put("out_channels", sum(self.out_widths))
        put("blocks", tuple(unit.block for unit in self.units for _ in range(unit.groups)))
        put("uniform", len(set(self.blocks)) == 1)
        inner = self.units[0].weight_shape[1:]
        if self.uniform:
            put("weight_shape", (self.out_channels, *inner))
        else:
            put("weight_shape", (sum(self.weight_sizes),) + (1,) * len(inner))

    def unpack(self, weight: Tensor) -> list[Tensor]:
        """Packed weight -> one view a unit, shaped as its ``weight_shape``."""
        parts = weight.reshape(-1).split(self.weight_sizes)
        return [part.view(u.weight_shape) for u, part in zip(self.units, parts, strict=True)]

    def pack(self, weights: Iterable[Tensor]) -> Tensor:
        """One weight a unit -> packed weight (a copy)."""
        return torch.cat([w.reshape(-1) for w in weights]).view(self.weight_shape)

    def spread(self, values: Tensor) -> Tensor:
        """One value an output channel -> a tensor that multiplies the packed weight: each value
        over all weights that lead to its channel."""
        if self.uniform:
            return values.view(-1, *(1,) * (len(self.weight_shape) - 1))
        # By index: ONNX has no repeat_interleave of a known size.
        spread = select(values, 0, self._channels, lambda: self._channel_index)
        return spread.view(self.weight_shape)

    def _channels(self) -> list[int]:
        """The output channel of every value of the packed weight."""
        repeats = (
            size // width
            for size, width in zip(self.weight_sizes, self.out_widths, strict=True)
            for _ in range(width)
        )
        return [c for c, count in enumerate(repeats) for _ in range(count)]

    @cached_property
    def _channel_index(self) -> DeviceIndex:
        return DeviceIndex(self._channels())

    def kinds(self) -> dict[tuple[int, int, int | None], list[int]]:
        """Blocks by shape: ``(c_in, c_out, k)`` -> indices of those that have it, ascending."""
        kinds: dict[tuple[int, int, int | None], list[int]] = {}
        for index, block in enumerate(self.blocks):
            kinds.setdefault(block, []).append(index)
        return kinds


@dataclass(frozen=True)
class StackLayout:
    """The units of a stacked layer in order, with their kernel sizes settled.

    ``kernel_size`` is what units that name none get; ``None`` makes the units linear. With
    ``shuffle`` output channels go round robin (:mod:`bunit_kernels.shuffle`); parameters keep the
    units' order. ``levels`` tell where each level's weights lie; ``stages`` are the levels as
    stacks of their own, whose channels are all in the units' order. A block (:class:`Level`) is as
    wide as its narrower side, in or out; ``width`` is that of the widest, by which ``auto``
    chooses. ``most_weights`` and ``most_blocks`` are the largest level's numbers of weights and of
    blocks, ``widest`` the largest width of a unit. ``linear_rows`` are linear units as the
    operators take them: rows ``(count, c0, ..., cL)``, one a run of equal neighbours.
    """

    units: tuple[UnitSpec, ...]
    kernel_size: int | None = 3
    shuffle: bool = False
    levels: tuple[Level, ...] = field(init=False, repr=False, compare=False)
    stages: tuple[StackLayout, ...] = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)
    most_weights: int = field(init=False, repr=False, compare=False)
    most_blocks: int = field(init=False, repr=False, compare=False)
    widest: int = field(init=False, repr=False, compare=False)
    linear_rows: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        k = self.kernel_size
        if k is not None and (type(k) is not int or k < 1):
            raise ValueError(f"kernel_size must be an int of at least 1, got {k!r}")
        if k is None:
            self._check_linear()
        if type(self.shuffle) is not bool:
            kind = type(self.shuffle).__name__
            raise TypeError(f"shuffle must be a bool, got {self.shuffle!r} ({kind})")
        kernels = [u.level_kernels(k) for u in self.units]
        levels = tuple(
            Level(
                tuple(
                    UnitLevel(u.widths[i], u.widths[i + 1], own[i], u.level_groups[i])
                    for u, own in zip(self.units, kernels, strict=True)
                )
            )
            for i in range(self.units[0].depth)
        )
        object.__setattr__(self, "levels", levels)
        narrow = (min(c_in, c_out) for level in levels for c_in, c_out, _ in level.blocks)
        object.__setattr__(self, "width", max(narrow))
        most = max(sum(level.weight_sizes) for level in levels)
        object.__setattr__(self, "most_weights", most)
        object.__setattr__(self, "most_blocks", max(len(level.blocks) for level in levels))
        sides = (max(u.c_in, u.c_out) for level in levels for u in level.units)
        object.__setattr__(self, "widest", max(sides))
        alone = len(levels) == 1 and not self.shuffle
        stages = (self,) if alone else tuple(map(self._stage, range(len(levels))))
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "linear_rows", self._linear_rows())

    def _check_linear(self) -> None:
        for unit in self.units:
            if unit.kernel_size is not None:
                raise ValueError(f"linear units have no kernel size, got {unit}")
            if unit.groups != 1:
                raise ValueError(f"linear units have no groups, got {unit}")

    def _linear_rows(self) -> tuple[int, ...]:
        rows: list[int] = []
        for widths, run in groupby(u.widths for u in self.units):
            rows += [len(list(run)), *widths]
        return tuple(rows)

    def _stage(self, level: int) -> StackLayout:
        """The stack of one-level units that a level is."""
        return StackLayout(tuple(u.level(level) for u in self.units), self.kernel_size)

    @property
    def num_units(self) -> int:
        return len(self.units)

    @property
    def depth(self) -> int:
        return len(self.levels)

    @property
    def in_channels(self) -> int:
        return self.levels[0].in_channels

    @property
    def out_channels(self) -> int:
        return self.levels[-1].out_channels

    @property
    def out_widths(self) -> tuple[int, ...]:
        """Each unit's output channels."""
        return tuple(unit.out_channels for unit in self.units)

    @property
    def shuffle_index(self) -> tuple[int, ...]:
        """For each channel of the layer's output the one of the units' concatenated outputs that
        it is: ``torch.cat(outputs, 1)[:, shuffle_index]`` is the layer's output; without
        ``shuffle`` that is every channel in turn."""
        return round_robin(self.out_widths) if self.shuffle else tuple(range(self.out_channels))

    def ordered(self, y: Tensor, dim: int) -> Tensor:
        """The units' concatenated outputs in the order of the layer's; ``dim`` has the
        channels."""
        return shuffled(y, self.out_widths, dim) if self.shuffle else y

    def describe(self) -> str:
        """``64 x 2-4-2``, or ``12 x 1-2-1, 5 x 3-2-1:k5, ...`` in order of first appearance."""
        counts: dict[str, int] = {}
        for unit in self.units:
            counts[str(unit)] = counts.get(str(unit), 0) + 1
        return ", ".join(f"{n} x {unit}" for unit, n in counts.items())


@dataclass(frozen=True)
class ConvGeometry:
    """A convolutional stack together with stride, padding and dilation.

    ``stride`` sits on the first level. ``padding="same"`` pads every level by
    ``dilation * (k - 1) / 2`` on each side, ``k`` its own kernel size; an int pads every level by
    as much. ``levels`` are the levels as geometries of their own; ``reach`` is the largest
    kernel size, padding or dilation.

    ``rows`` are the units as the operators take them, rows ``(count, k, pad, c0, ..., cL)``, one a
    run of equal neighbours; a unit whose levels all have the same groups is as many smaller units.
    They are ``None`` where no such rows say it, some unit having other kernel sizes or groups from
    level to level, or groups whose outputs are shuffled: no whole-unit operator runs these, but
    operators of one level do, in turn.

    Raises:
        ValueError: see the messages; every check is on numbers alone, none needs an input.
    """

    layout: StackLayout
    stride: int = 1
    padding: int | str = "same"
    dilation: int = 1
    rows: tuple[int, ...] | None = field(init=False, repr=False, compare=False)
    reach: int = field(init=False, repr=False, compare=False)
    levels: tuple[ConvGeometry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        for name in ("stride", "dilation"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if self.layout.kernel_size is None:
            raise ValueError("kernel_size must be an int of at least 1, got None")
        self._check_padding([{u.kernel for u in level.units} for level in self.layout.levels])
        object.__setattr__(self, "rows", self._rows())
        kernel = max(u.kernel for level in self.layout.levels for u in level.units)
        object.__setattr__(self, "reach", max(kernel, self.pad(kernel), self.dilation))
        stages = self.layout.stages
        alone = stages[0] is self.layout
        levels = (self,) if alone else tuple(map(self._level, range(len(stages))))
        object.__setattr__(self, "levels", levels)

    def _check_padding(self, kernels: list[set[int]]) -> None:
        if self.padding == "same":
            even = next((k for level in kernels for k in sorted(level) if k % 2 == 0), None)
            if even is not None:
                raise ValueError(f'padding="same" needs odd kernel sizes, got {even}')
        elif type(self.padding) is int and self.padding >= 0:
            mixed = next((sorted(level) for level in kernels if len(level) > 1), None)
            if mixed is not None:
                raise ValueError(
                    f"padding={self.padding} would give units of kernel sizes {mixed} outputs of "
                    'different sizes that cannot be concatenated; use padding="same" or one '
                    "kernel size"
                )
        else:
            raise ValueError(
                f'padding must be "same" or an int of at least 0, got {self.padding!r}'
            )

    def _level(self, level: int) -> ConvGeometry:
        stride = self.stride if level == 0 else 1
        return ConvGeometry(self.layout.stages[level], stride, self.padding, self.dilation)

    def _rows(self) -> tuple[int, ...] | None:
        units: list[tuple[int, ...]] = []
        for unit in self.layout.units:
            kernels = set(unit.level_kernels(self.layout.kernel_size))
            if len(kernels) > 1 or len(set(unit.level_groups)) > 1:
                return None
            if self.layout.shuffle and unit.groups != 1:
                return None  # the smaller units would go round robin
            (k,), groups = kernels, unit.level_groups[0]
            units += [(k, self.pad(k), *(width // groups for width in unit.widths))] * groups
        rows: list[int] = []
        for unit, run in groupby(units):
            rows += [len(list(run)), *unit]
        return tuple(rows)

    def pad(self, kernel: int) -> int:
        """Zeros on each side of the image at a level of that kernel size."""
        return self.dilation * (kernel - 1) // 2 if self.padding == "same" else self.padding

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after all levels (of every unit alike)."""
        return self.level_sizes(height, width)[-1]

    def level_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the input and after each level; below 1 where nothing is left."""
        sizes = [(height, width)]
        for i, level in enumerate(self.layout.levels):
            stride = self.stride if i == 0 else 1
            lost = self._lost(level.units[0].kernel)
            height, width = ((size - lost - 1) // stride + 1 for size in sizes[-1])
            sizes.append((height, width))
        return sizes

    def _lost(self, kernel: int) -> int:
        """Rows and columns that a level of stride 1 takes off."""
        return self.dilation * (kernel - 1) - 2 * self.pad(kernel)

    def check_size(self, height: int, width: int) -> None:
        """Raises ``ValueError`` where a level would have no output row or column."""
        if height < 1 or width < 1:
            raise ValueError(f"expected images of at least 1x1 pixels, got {height}x{width}")
        if self.padding == "same":
            return  # a level never shrinks below ceil(size / stride)
        for level, (h, w) in enumerate(self.level_sizes(height, width)):
            if h < 1 or w < 1:
                k = self.layout.levels[level - 1].units[0].kernel
                raise ValueError(
                    f"padding={self.padding} leaves no pixel after level {level} of "
                    f"{self.layout.depth}: {height}x{width} pixels came, that level takes "
                    f"{self._lost(k)} off "
                    f"(kernel {k}x{k}, dilation {self.dilation}, stride {self.stride})"
                )
