"""Layers and input sizes that tests and benchmarks share: a case is numbers and names alone."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from bunit_kernels import UnitSpec
from bunit_kernels.layout import ConvGeometry, StackLayout, resolve_units

ACTIVATION_NAMES = ("relu", "relu6", "leaky_relu", "gelu", "silu", "hardswish", "identity")

#: Strides a tensor may come in (``laid_out`` in reference_runs.py makes them); ``"loose"`` are
#: contiguous ones but for dimensions of size 1, whose stride means nothing.
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded", "loose")


def _channels(layout: StackLayout) -> list[int]:
    return [layout.in_channels, *(level.out_channels for level in layout.levels)]


@dataclass(frozen=True)
class ConvCase:
    """A convolutional stack and the size of an input for it."""

    units: str | tuple[str, ...] = "2-4-2"
    num_units: int | None = None
    size: tuple[int, int, int] = (2, 6, 7)  # images, height, width
    kernel_size: int = 3
    stride: int = 1
    padding: int | str = "same"
    dilation: int = 1
    shuffle: bool = False
    activation: str = "relu"
    out_activation: str = "relu"
    bias: bool = True
    residual: str | None = None  # activation after the residual
    layout: str = "contiguous"  # of the input, one of LAYOUTS
    grad_layout: str = "contiguous"  # of the gradient of the output, and of the residual

    @property
    def geometry(self) -> ConvGeometry:
        layout = StackLayout(
            resolve_units(self.units, self.num_units), self.kernel_size, self.shuffle
        )
        return ConvGeometry(layout, self.stride, self.padding, self.dilation)

    def __str__(self) -> str:
        units = self.units if isinstance(self.units, str) else "+".join(self.units[:4])
        count = self.num_units or (1 if isinstance(self.units, str) else len(self.units))
        parts = [f"{count}x{units}", "x".join(map(str, self.size))]
        shown = {"kernel_size": "k", "stride": "s", "padding": "p", "dilation": "d"}
        parts += [f"{short}{getattr(self, name)}" for name, short in shown.items()]
        parts += [self.activation, self.out_activation, "bias" if self.bias else "nobias"]
        parts += [f"+{self.residual}"] if self.residual else []
        parts += ["shuffle"] if self.shuffle else []
        return "-".join([*parts, self.layout, self.grad_layout])

    @property
    def longest_sum(self) -> int:
        """Terms of the longest sum of products in a forward or backward pass."""
        sizes = self.geometry.level_sizes(*self.size[1:])
        channels = max(w for u in self.geometry.layout.units for w in u.widths)
        kernel = max(k for level in self.geometry.layout.levels for _, _, k in level.blocks)
        pixels = max(h * w for h, w in sizes)
        return max(channels * kernel**2, self.size[0] * pixels, 1)

    @property
    def fewest_values(self) -> int:
        """Of the input and what each level gives, the fewest."""
        pixels = [self.size[0] * h * w for h, w in self.geometry.level_sizes(*self.size[1:])]
        return min(map(math.prod, zip(pixels, _channels(self.geometry.layout), strict=True)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.size[0], self.geometry.layout.in_channels, *self.size[1:])

    @property
    def output_shape(self) -> tuple[int, ...]:
        size = self.geometry.output_size(*self.size[1:])
        return (self.size[0], self.geometry.layout.out_channels, *size)


@dataclass(frozen=True)
class LinearCase:
    """A linear stack and the leading shape of an input for it."""

    units: str | tuple[str, ...] = "4-8-4"
    num_units: int | None = None
    size: tuple[int, ...] = (5,)
    shuffle: bool = False
    activation: str = "relu"
    out_activation: str = "relu"
    bias: bool = True
    layout: str = "contiguous"
    grad_layout: str = "contiguous"
    residual: None = None

    @property
    def stack(self) -> StackLayout:
        return StackLayout(resolve_units(self.units, self.num_units), None, self.shuffle)

    def __str__(self) -> str:
        units = self.units if isinstance(self.units, str) else "+".join(self.units[:4])
        count = self.num_units or (1 if isinstance(self.units, str) else len(self.units))
        parts = [f"{count}x{units}", "x".join(map(str, self.size)) or "vector", self.activation]
        parts += [self.out_activation, "bias" if self.bias else "nobias", self.layout]
        parts += ["shuffle"] if self.shuffle else []
        return "-".join([*parts, self.grad_layout])

    @property
    def longest_sum(self) -> int:
        return max(*(w for u in self.stack.units for w in u.widths), math.prod(self.size))

    @property
    def fewest_values(self) -> int:
        return math.prod(self.size) * min(_channels(self.stack))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (*self.size, self.stack.in_channels)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*self.size, self.stack.out_channels)


Case = ConvCase | LinearCase


def layout_of(case: Case) -> StackLayout:
    return case.stack if isinstance(case, LinearCase) else case.geometry.layout


_THIN = ((12, 4, 1), (12, 1, 4), (12, 1, 1), (1, 4, 5))  # a size of 1 has any stride
_WIDTHS = (1, 2, 5, 7, 8, 13, 17, 31, 33, 56)

LEVEL_CONVS = (
    *(ConvCase("2-4", 3, size=(2, 3, w)) for w in _WIDTHS),
    # Images that a kernel may cut into bands, with a remainder.
    ConvCase("2-3", 2, size=(2, 28, 28)),
    ConvCase("2-3", 2, size=(1, 29, 25), kernel_size=1),
    ConvCase("2-3", 2, size=(1, 40, 31), kernel_size=5, layout="channels_last"),
    ConvCase("1-2", 2, size=(2, 56, 56), stride=2),
    ConvCase(("1-2", "2-1:k5"), size=(3, 31, 27), bias=False),
    ConvCase("1-1", 1, size=(1, 100, 9), out_activation="identity"),
    ConvCase("2-4", 3, size=(3, 1, 1)),
    ConvCase("2-4", 3, size=(3, 17, 1)),
    ConvCase("2-4", 3, size=(0, 5, 5)),
    ConvCase("1-1", 23, size=(1, 5, 9), bias=False),
    ConvCase("3-5", 2, size=(2, 9, 20), layout="channels_last"),
    ConvCase("1-2", 130, size=(1, 4, 4)),
    ConvCase("16-16", 2, size=(2, 7, 7)),
    ConvCase("32-64", 1, size=(1, 6, 6)),
    ConvCase("2-3", 4, kernel_size=1),
    ConvCase("2-3", 4, kernel_size=5),
    ConvCase("2-3", 2, kernel_size=7, size=(1, 9, 11)),
    ConvCase("2-3", 3, kernel_size=2, padding=1),
    ConvCase("2-3", 3, kernel_size=4, padding=0),
    ConvCase("2-3", 3, stride=2, size=(2, 8, 9)),
    ConvCase("2-3", 3, stride=3, size=(2, 11, 10), layout="channels_last"),
    ConvCase("2-3", 3, kernel_size=1, stride=3, size=(2, 8, 7)),
    ConvCase("2-3", 3, stride=2, kernel_size=5, padding=0, size=(2, 9, 12)),
    ConvCase("2-3", 3, dilation=2),
    ConvCase("2-3", 3, dilation=4, kernel_size=5, size=(1, 5, 5)),
    ConvCase("2-3", 3, dilation=2, stride=2, padding=1, size=(2, 9, 8)),
    ConvCase("2-3", 3, padding=0),
    ConvCase("2-3", 3, padding=3),
    ConvCase("2-3", 3, padding=2, kernel_size=1),
    ConvCase("2-3", 3, padding=0, size=(2, 3, 3)),
    ConvCase(("1-2", "2-1", "3-2", "1-2", "1-2")),
    ConvCase(("1-2", "2-1", "3-2", "1-2"), layout="channels_last", stride=2),
    ConvCase(("1-2:k1", "2-1:k5", "3-3:k7", "2-2"), size=(2, 9, 8)),
    ConvCase(("4-1", "1-4"), size=(3, 1, 1), bias=False),
    ConvCase(("2-2", "2-2:k5"), bias=False, dilation=2),
    *(ConvCase("2-3", 5, size=(19, 4, 5), layout=x, grad_layout=x) for x in LAYOUTS),
    ConvCase("1-5", 9, size=(35, 7, 7), layout="channels_last", grad_layout="channels_last"),
    ConvCase("17-2", 2, size=(16, 3, 9)),
    ConvCase("20-13", 2, size=(2, 6, 19), kernel_size=5, padding=1, layout="channels_last"),
    ConvCase("30-12", 1, size=(2, 9, 11), dilation=2),
    ConvCase(("16-33", "13-2:k1", "40-5"), size=(3, 9, 20)),
    ConvCase(("1-2:k1", "2-1:k5", "3-3:k7"), size=(18, 8, 3), stride=2, grad_layout="transposed"),
    ConvCase("2-3", 3, size=(33, 5, 6), stride=2, dilation=2, layout="channels_last"),
    ConvCase("2-3", 3, size=(17, 2, 1), padding=2),
    # Wide, and pixels enough for transformed weights: Winograd's tiles, whole and cut off.
    ConvCase("16-16", 2, size=(1, 32, 32), out_activation="silu"),
    ConvCase("16-20", 1, size=(1, 23, 29), padding=0, grad_layout="transposed"),
    ConvCase("19-14", 2, size=(3, 15, 13), layout="channels_last", grad_layout="channels_last"),
    ConvCase("17-16", 1, size=(17, 7, 5), padding=2, layout="sliced"),
    ConvCase("9-8", 2, size=(2, 17, 33), bias=False),
    # Rows without padding, backward too: bands of an image, of two rows, windows, more images than
    # sums stay vectors for.
    ConvCase("2-3", 1, size=(1, 64, 48), layout="window", grad_layout="window"),
    ConvCase("5-1", 1, size=(2, 2, 16), grad_layout="window"),
    ConvCase("3-2", 2, size=(35, 3, 30), layout="transposed", grad_layout="channels_last"),
    ConvCase(("2-3", "4-7", "16-16", "2-2:k5"), size=(2, 40, 28), layout="channels_last"),
    # Groups: blocks of one channel and of more, alike and not.
    ConvCase("4-4:g4", 3, size=(2, 9, 16)),
    ConvCase("6-12:k5:g6", 2, size=(3, 8, 7), stride=2),
    ConvCase("24-24:g24", 2, size=(2, 7, 9), dilation=2, layout="channels_last"),
    ConvCase(("4-8:g4", "2-3", "6-3:k5:g3", "4-4:k1:g2"), size=(2, 9, 8), stride=2),
    ConvCase("4-8:g2", 3, padding=0, bias=False, grad_layout="channels_last"),
    *(ConvCase("2-3", 5, layout=x, grad_layout=x) for x in LAYOUTS),
    *(ConvCase(("2-3", "1-1"), layout=x, grad_layout=x) for x in LAYOUTS),
    *(ConvCase("2-3", 2, size=s, layout="loose", grad_layout="loose") for s in _THIN),
    *(ConvCase("1-1", 1, size=s, layout="loose", grad_layout="loose") for s in _THIN),
    *(ConvCase("2-4", 2, out_activation=name) for name in ACTIVATION_NAMES),
    ConvCase("2-3", 4, shuffle=True),
    ConvCase(("2-3", "1-1", "3-2"), shuffle=True, layout="channels_last"),
)

LEVEL_LINEARS = (
    LinearCase("4-8", 3),
    LinearCase("1-1", 17, size=(9,)),
    LinearCase("16-64", 2, size=(3,)),
    LinearCase("5-7", 3, size=(33,), bias=False),
    LinearCase("4-4", 130, size=(2,)),
    LinearCase("4-8", 3, size=()),
    LinearCase("4-8", 3, size=(0,)),
    LinearCase("4-8", 3, size=(2, 3, 5)),
    LinearCase("4-8", 3, size=(1,)),
    LinearCase("13-40", 3, size=(70,)),
    LinearCase(("1-2", "3-1", "2-2", "1-2")),
    LinearCase(("8-1", "1-8"), size=(2, 17), bias=False),
    *(LinearCase("3-5", 4, size=(6,), layout=x, grad_layout=x) for x in LAYOUTS),
    *(LinearCase(("3-5", "2-2"), size=(2, 6), layout=x, grad_layout=x) for x in LAYOUTS),
    *(LinearCase("4-8", 2, out_activation=name) for name in ACTIVATION_NAMES),
    LinearCase("4-8", 3, shuffle=True),
    LinearCase(("2-3", "1-1", "3-2"), size=(2, 6), shuffle=True),
)

#: Shuffled outputs, of units alike and not, in each way that a kernel may write them.
_SHUFFLED_CONVS = tuple(
    ConvCase(units, count, size, shuffle=True, **options)
    for units, count in (("2-4-3", 5), (("2-4-3", "1-2-1", "3-2-2", "1-3-4", "2-2-2"), None))
    for size, options in (
        ((2, 6, 7), {}),
        ((2, 6, 7), {"layout": "channels_last", "grad_layout": "channels_last"}),
        ((18, 5, 6), {"residual": "relu"}),
        ((18, 5, 6), {"residual": "relu", "layout": "channels_last"}),
        ((2, 20, 28), {"residual": "identity", "out_activation": "silu"}),
        ((2, 20, 28), {"bias": False}),
        ((3, 9, 20), {"stride": 2, "grad_layout": "channels_last", "activation": "gelu"}),
        ((2, 9, 20), {"residual": "relu", "kernel_size": 5, "layout": "sliced"}),
    )
)

_POOL = ("1-2-1", "1-2-2", "1-2-3", "2-1-2", "2-1-1", "3-2-1")

UNIT_CONVS = (
    *(ConvCase("2-4-2", 3, size=(3, 4, w)) for w in _WIDTHS),
    ConvCase("2-3-2", 2, size=(2, 28, 28)),
    ConvCase("2-3-1", 1, size=(1, 56, 57), stride=2, layout="channels_last"),
    ConvCase(("1-2-1", "2-1-2:k5", "1-2-1"), size=(2, 29, 31), residual="relu"),
    ConvCase("1-2-1", 1, size=(1, 100, 9), kernel_size=1),
    ConvCase("2-4-2", 2, size=(2, 1, 32)),
    ConvCase("3-4-2", 2, size=(2, 37, 48), layout="window"),
    ConvCase("1-3-2-1", 2, size=(1, 21, 16), layout="channels_last"),
    ConvCase("2-4-2", 3, size=(5, 1, 1)),
    ConvCase("2-4-2", 3, size=(2, 33, 2)),
    ConvCase("2-4-4", 2, stride=2, size=(2, 9, 8)),
    ConvCase("2-4-2", 2, stride=3, size=(2, 9, 11), layout="channels_last"),
    ConvCase("2-4", 3),
    ConvCase("2-4-3-2", 2, size=(2, 7, 9)),
    ConvCase("1-2-3-2-1", 3, size=(2, 7, 9), activation="leaky_relu"),
    ConvCase("1-3-1", 40, size=(1, 6, 6), out_activation="identity"),
    ConvCase("16-16-16", 2, size=(2, 7, 7)),
    ConvCase("32-64-32", 1, size=(1, 5, 6)),
    ConvCase("12-15-40", 2, size=(2, 9, 20)),
    ConvCase(("16-3-16", "14-20-7:k5"), size=(2, 8, 20), layout="channels_last", residual="relu"),
    ConvCase("4-8-4", 2, kernel_size=5, size=(2, 8, 8)),
    ConvCase("2-4-2", 2, kernel_size=1),
    ConvCase("2-4-2", 2, kernel_size=7, size=(1, 9, 9)),
    ConvCase("2-4-2", 2, dilation=2, size=(2, 7, 8)),
    ConvCase("2-4-2", 2, dilation=3, stride=2, size=(2, 7, 8)),
    ConvCase("2-4-2", 2, padding=0, size=(2, 6, 9)),
    ConvCase("2-4-2", 2, padding=0, size=(3, 5, 5)),
    ConvCase("2-4-2", 2, padding=2, stride=2),
    ConvCase("1-2-1", 2, padding=1, kernel_size=2),
    ConvCase("2-4-2", 3, bias=False),
    ConvCase("2-4-2", 3, residual="identity"),
    ConvCase("2-4-2", 3, residual="relu", layout="channels_last"),
    ConvCase("2-4-4", 3, residual="relu", stride=2, size=(2, 9, 8), grad_layout="expanded"),
    ConvCase(_POOL, size=(2, 7, 9)),
    ConvCase(_POOL * 2, size=(2, 7, 9), layout="channels_last", residual="relu"),
    ConvCase(("2-4-2", "2-4-2:k5", "1-1-1:k1", "2-4-2"), size=(2, 8, 7)),
    ConvCase(("1-2-1", "3-1-3:k5"), stride=2, dilation=2, size=(2, 9, 9), bias=False),
    ConvCase(("2-4-2-1", "1-1-1-2"), size=(3, 1, 1)),
    *(ConvCase("2-4-2", 9, size=(21, 4, 5), layout=x, residual="relu") for x in LAYOUTS[:4]),
    ConvCase(_POOL * 2, size=(35, 7, 7), layout="channels_last", grad_layout="channels_last"),
    ConvCase(_POOL, size=(16, 14, 15), stride=2, grad_layout="sliced"),
    ConvCase(("1-2-1", "3-1-3:k5", "2-2-2:k1"), size=(19, 5, 3), stride=2, dilation=2),
    ConvCase("9-17-5", 1, size=(17, 3, 2), residual="identity", out_activation="gelu"),
    ConvCase("2-4-3-2", 2, size=(16, 1, 9), padding=2, kernel_size=3),
    ConvCase("2-4-2", 2, size=(18, 3, 29), layout="channels_last"),
    ConvCase("16-16-16", 2, size=(2, 17, 33), residual="relu"),
    ConvCase("16-17-18-2", 1, size=(1, 32, 17), layout="channels_last"),
    ConvCase(("16-16-16", "2-4-2", "18-16-14"), size=(17, 7, 9), grad_layout="channels_last"),
    ConvCase(("16-32-16", "8-8-8", "12-24-12:k5"), size=(2, 19, 16)),
    ConvCase("4-16-16", 2, size=(2, 31, 30), stride=2, activation="hardswish"),
    ConvCase("2-16-16-3", 2, size=(1, 53, 11), layout="sliced"),
    ConvCase("2-4-3", 1, size=(2, 64, 48), layout="window", grad_layout="window"),
    ConvCase("1-2-5-1", 1, size=(35, 2, 16), residual="relu"),
    ConvCase(("2-4-3", "5-9-1", "16-16-16", "2-4-2:k5"), size=(2, 40, 28), layout="channels_last"),
    ConvCase(("2-4-3", "5-9-1", "16-16-16", "2-4-2:k5"), size=(2, 40, 28)),
    # Kernel sizes and groups of their own at each level; groups alike at every level.
    ConvCase("4-24-24-4:k1,3,1:g1,24,1", 2, size=(2, 9, 8), residual="relu"),
    ConvCase("2-6-6-3:k1,5,1:g1,6,1", 3, size=(3, 8, 7), stride=2, layout="channels_last"),
    ConvCase(("4-8-8-2:k1,3,1:g1,8,1", "2-3-4-3", "2-4-2-4:k5:g2"), size=(2, 9, 8), stride=2),
    ConvCase(
        ("4-8-4:g1,2", "2-4-2", "3-6-2:k5,1:g3,1"), size=(3, 7, 9), dilation=2, residual="relu"
    ),
    ConvCase("2-6-6-2:k1,3,2:g1,6,2", 2, size=(2, 6, 5), padding=1, activation="hardswish"),
    ConvCase("3-6-3:k3,1:g3,1", 2, padding=0, layout="sliced", grad_layout="transposed"),
    ConvCase("4-8-4:g2", 3, stride=2, layout="channels_last", grad_layout="channels_last"),
    ConvCase(("4-4-4:k5:g4", "4-8-4:g2", "1-3-2"), size=(2, 8, 16), out_activation="silu"),
    # Squares: rows of one vector and of half of one, heights that cut them off, any channels.
    *(ConvCase("5-7-3", 2, size=(2, h, 28), residual="relu") for h in (1, 2, 3, 7)),
    *(ConvCase("2-4-2", 3, size=(3, h, 16)) for h in (1, 2, 5, 14)),
    ConvCase(("1-2-1", "3-6-3", "4-8-4", "9-6-10"), size=(1, 33, 32), activation="gelu"),
    ConvCase(("1-1-1", "16-3-16", "4-3-4"), size=(2, 18, 30), layout="window", bias=False),
    ConvCase("8-5-4-8", 2, size=(2, 21, 16), layout="channels_last", residual="identity"),
    ConvCase("16-32-16", 1, size=(1, 150, 28), grad_layout="window"),
    ConvCase("2-4-2", 1, size=(1, 96, 16), out_activation="silu"),
    ConvCase("5-7-11", 2, size=(1, 27, 28)),
    *(ConvCase("2-3-2", 3, layout=x, grad_layout=x) for x in LAYOUTS if x != "expanded"),
    *(
        ConvCase("2-3-2", 2, size=s, layout="loose", grad_layout="loose", residual="relu")
        for s in _THIN
    ),
    *(ConvCase("1-2-1", 1, size=s, layout="loose", grad_layout="loose") for s in _THIN),
    *(ConvCase("2-4-2", 2, activation=name) for name in ACTIVATION_NAMES),
    *(ConvCase("2-4-2", 2, out_activation=name) for name in ACTIVATION_NAMES),
    *_SHUFFLED_CONVS,
    ConvCase("16-16-16", 3, size=(2, 17, 33), shuffle=True),
    ConvCase(("16-16-16", "2-4-2", "18-16-14"), size=(2, 17, 20), shuffle=True),
    ConvCase("2-4-1", 3, shuffle=True, residual="relu"),  # in which nothing moves
    ConvCase("2-4-2", 40, size=(1, 8, 9), shuffle=True, layout="channels_last"),
)

#: Batch statistics need a few values a channel, or their variance is a matter of luck.
TRAIN_CONVS = tuple(
    replace(case, bias=False)
    for case in UNIT_CONVS
    if case.size[0] * math.prod(case.geometry.output_size(*case.size[1:])) >= 12
)

UNIT_LINEARS = (
    LinearCase("4-8-4", 3),
    LinearCase("4-8-4", 3, size=()),
    LinearCase("4-8-4", 3, size=(0,)),
    LinearCase("1-2-1", 33, size=(17,)),
    LinearCase("64-64-64", 1, size=(3,)),
    LinearCase("4-16-7-3", 2, size=(2, 5), bias=False),
    LinearCase(("1-2-1", "3-2-1", "2-1-2"), size=(6,)),
    LinearCase(("8-4-1-8", "1-2-3-4"), size=(2, 5), layout="transposed"),
    LinearCase("4-8-4", 2, layout="sliced", grad_layout="expanded"),
    LinearCase("4-8-4", 3, size=(1,)),
    LinearCase("4-8-4", 19, size=(150,)),
    LinearCase("3-5-2", 7, size=(33,), bias=False, layout="sliced", grad_layout="transposed"),
    LinearCase(("4-8-4", "1-2-1") * 5, size=(35,), out_activation="identity"),
    LinearCase("4-9-6", 5, size=(40,), activation="silu", out_activation="hardswish"),
    LinearCase(("64-64-64", "2-3-2"), size=(5,), activation="gelu", bias=False),
    LinearCase("2-3", 4, size=(7,), out_activation="leaky_relu"),
    LinearCase("16-32-16", 2, size=(70,), layout="sliced", grad_layout="expanded"),
    LinearCase("12-24-15", 3, size=(37,), activation="silu", out_activation="identity"),
    LinearCase(("40-13-30-16", "16-80-15-12"), size=(19,), activation="gelu", bias=False),
    *(LinearCase("4-8-4", 2, activation=name) for name in ACTIVATION_NAMES),
    *(LinearCase("4-8-4", 2, out_activation=name) for name in ACTIVATION_NAMES),
    LinearCase("4-8-4", 5, size=(7,), shuffle=True),
    LinearCase("4-8-3", 5, size=(2, 7), shuffle=True, layout="sliced", grad_layout="transposed"),
    LinearCase(("1-2-1", "3-2-4", "2-1-2"), size=(6,), shuffle=True),
    LinearCase("3-2", 1, size=(), shuffle=True),
)


def smooth(case: Case) -> Case:
    """The same case with activations that have a derivative everywhere: at low precision too many
    values lie at a kink for gradients to be compared there."""
    swap = {"relu": "silu", "relu6": "gelu", "leaky_relu": "silu", "hardswish": "gelu"}
    case = replace(
        case,
        activation=swap.get(case.activation, case.activation),
        out_activation=swap.get(case.out_activation, case.out_activation),
    )
    return replace(case, residual="identity") if case.residual else case


def quick(cases: Iterable[ConvCase], most: int = 100) -> list[ConvCase]:
    """Those small enough for an interpreter that takes milliseconds a unit, tap and tile."""

    def work(case: ConvCase) -> int:
        levels = case.geometry.layout.levels
        taps = sum(k * k for level in levels for _, _, k in level.blocks)
        tiles = 1 + case.size[0] * case.size[1] * case.size[2] // 512
        return taps * (len(levels) + 1) // len(levels) * tiles

    return [case for case in cases if work(case) <= most]


def some(cases: Sequence, step: int) -> list:
    """Every ``step``-th case, of those that take long; with BUNIT_ALL_CASES=1 in the environment
    all."""
    return list(cases if os.environ.get("BUNIT_ALL_CASES") == "1" else cases[::step])


def random_conv(numbers: random.Random, depth: int | None = None) -> ConvCase:
    """A convolutional case with every choice drawn by ``numbers``."""
    depth = depth or numbers.choice((1, 2, 2, 2, 3, 4))
    hybrid = numbers.random() < 0.5
    same = numbers.random() < 0.7
    kernel = numbers.choice((1, 3, 3, 3, 5, 7) if same else (1, 2, 3, 4, 5))
    wide = numbers.random() < 0.15
    choices = (12, 16, 30) if wide else (1, 1, 2, 3, 4, 6)
    widths = [
        "-".join(str(numbers.choice(choices)) for _ in range(depth + 1))
        for _ in range(numbers.randint(2, 6) if hybrid else 1)
    ]
    if hybrid and same:
        widths = [w + numbers.choice(("", "", ":k1", ":k5")) for w in widths]
    tall = 40 if numbers.random() < 0.2 else 12
    many = numbers.random() < 0.2  # as many as a kernel may work on side by side
    case = ConvCase(
        tuple(widths) if hybrid else widths[0],
        None if hybrid else numbers.randint(1, 9),
        size=(
            numbers.randint(16, 35) if many else numbers.randint(2, 4),
            numbers.randint(1, 6 if many else tall),
            numbers.randint(1, 9 if many else 20),
        ),
        kernel_size=kernel,
        stride=numbers.choice((1, 1, 1, 2, 3)),
        # Not far past the kernel, and not at all past one of a single pixel: sums over mostly equal
        # pixels round the same way each time.
        padding="same" if same else numbers.randint(0, kernel // 2 + (kernel > 1)),
        dilation=numbers.choice((1, 1, 1, 2, 3)),
        shuffle=numbers.random() < 0.3,
        activation=numbers.choice(ACTIVATION_NAMES),
        out_activation=numbers.choice(ACTIVATION_NAMES),
        bias=numbers.random() < 0.7,
        residual=numbers.choice((None, None, "identity", "relu")),
        layout=numbers.choice(LAYOUTS),
        grad_layout=numbers.choice(LAYOUTS),
    )
    if numbers.random() < 0.25:
        units = case.units if hybrid else (case.units,)
        units = tuple(_light(numbers, unit, case.padding == "same") for unit in units)
        case = replace(case, units=units if hybrid else units[0])
    if wide:  # among so many values one always lies at a kink
        case = smooth(case)
    fits = all(min(size) >= 1 for size in case.geometry.level_sizes(*case.size[1:]))
    return case if fits else random_conv(numbers, depth)


def _light(numbers: random.Random, text: str, own_kernels: bool) -> str:
    """The unit with groups drawn for each level and, where allowed, kernel sizes."""
    unit = UnitSpec(text)
    groups = [
        numbers.choice([g for g in range(1, math.gcd(*pair) + 1) if math.gcd(*pair) % g == 0])
        for pair in pairwise(unit.widths)
    ]
    kernels = [numbers.choice((1, 3, 3, 5)) for _ in groups] if own_kernels else unit.kernel_size
    return str(UnitSpec(unit.widths, kernels, groups))


def random_linear(numbers: random.Random, depth: int | None = None) -> LinearCase:
    """A linear case with every choice drawn by ``numbers``."""
    depth = depth or numbers.choice((1, 2, 2, 3, 4))
    hybrid = numbers.random() < 0.5
    least, most = numbers.choice(((1, 9), (1, 9), (12, 40)))
    widths = [
        "-".join(str(numbers.randint(least, most)) for _ in range(depth + 1))
        for _ in range(numbers.randint(2, 6) if hybrid else 1)
    ]
    return LinearCase(
        tuple(widths) if hybrid else widths[0],
        None if hybrid else numbers.randint(1, 20),
        size=tuple(numbers.randint(1, 9) for _ in range(numbers.randint(0, 3))),
        shuffle=numbers.random() < 0.3,
        activation=numbers.choice(ACTIVATION_NAMES),
        out_activation=numbers.choice(ACTIVATION_NAMES),
        bias=numbers.random() < 0.7,
        layout=numbers.choice(LAYOUTS),
        grad_layout=numbers.choice(LAYOUTS),
    )
