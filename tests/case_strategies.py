"""Hypothesis strategies for the cases of reference_cases.py: every choice that a case has.

What shrinks toward the start of each list or range is the plainest choice, so that a failure is
reported on the smallest layer that shows it.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd

from hypothesis import strategies as st
from reference_cases import ACTIVATION_NAMES, LAYOUTS, ConvCase, LinearCase

from bunit_kernels import UnitSpec

LAYOUT = st.sampled_from((*LAYOUTS, "window"))
#: Of parameters, which have no batch to expand.
PARAMETER_LAYOUT = st.sampled_from(
    ("contiguous", "channels_last", "transposed", "sliced", "window")
)
ACTIVATION = st.sampled_from(("identity", *ACTIVATION_NAMES[:-1]))

#: Mostly the widths that units are for; wider ones take other paths through kernels.
_WIDTH = st.one_of(st.integers(1, 4), st.integers(1, 9), st.sampled_from((16, 17, 33)))


_LEVELS = st.integers(1, 4)
_IMAGES = st.integers(0, 35)


@st.composite
def convolutions(draw, levels=_LEVELS, images=_IMAGES, residuals=True):
    """Convolutional cases of every geometry that leaves at least one pixel."""
    same = draw(st.sampled_from((True, True, False)), label="same padding")
    kernel = draw(st.sampled_from((3, 1, 5, 7)) if same else st.integers(1, 5), label="kernel")
    # Of units of an int padding all have one kernel size.
    kernels = st.sampled_from((1, 3, 5)) if same else None
    units, count = draw(unit_mixes(levels, light(kernels)), label="units")
    case = {
        "units": units,
        "num_units": count,
        "kernel_size": kernel,
        "stride": draw(st.sampled_from((1, 1, 2, 3)), label="stride"),
        # Not far past the kernel: sums over mostly equal pixels round the same way each time.
        "padding": "same" if same else draw(st.integers(0, kernel // 2 + 1), label="padding"),
        "dilation": draw(st.sampled_from((1, 1, 2, 3)), label="dilation"),
        "shuffle": draw(st.booleans(), label="shuffle"),
        "activation": draw(ACTIVATION, label="activation"),
        "out_activation": draw(ACTIVATION, label="out_activation"),
        "bias": draw(st.booleans(), label="bias"),
        "residual": draw(st.sampled_from((None, "identity", "relu"))) if residuals else None,
        "layout": draw(LAYOUT, label="layout"),
        "grad_layout": draw(LAYOUT, label="grad_layout"),
    }
    number = draw(images, label="images")
    # As many images as a kernel may work on side by side: small ones, for the time they take.
    sides = st.integers(0, 5) if number > 4 else st.one_of(st.integers(0, 11), st.integers(0, 39))
    height, width = (_least_side(case) + draw(sides, label="side") for _ in range(2))
    return ConvCase(**case, size=(number, height, width))


@st.composite
def linear_units(draw, levels=_LEVELS):
    """Linear cases of any leading dimensions."""
    units, count = draw(unit_mixes(levels, plain), label="units")
    rows = st.one_of(st.integers(0, 9), st.integers(0, 70))
    size = draw(st.lists(rows, max_size=1) | st.lists(st.integers(1, 5), max_size=3), label="size")
    return LinearCase(
        units,
        count,
        size=tuple(size),
        shuffle=draw(st.booleans(), label="shuffle"),
        activation=draw(ACTIVATION, label="activation"),
        out_activation=draw(ACTIVATION, label="out_activation"),
        bias=draw(st.booleans(), label="bias"),
        layout=draw(LAYOUT, label="layout"),
        grad_layout=draw(LAYOUT, label="grad_layout"),
    )


@st.composite
def unit_mixes(draw, levels, of_widths):
    """``(units, num_units)`` of one layer: equal units, or a mix of up to five kinds, where kinds
    come back after others as well as one after another. ``of_widths`` is a strategy for a unit of
    given widths."""
    widths = st.lists(_WIDTH, min_size=(n := draw(levels) + 1), max_size=n)
    spec = widths.flatmap(of_widths)
    if draw(st.booleans(), label="uniform"):
        return draw(spec), draw(st.integers(1, 9))
    kinds = draw(st.lists(spec, min_size=1, max_size=5))
    order = st.integers(0, len(kinds) - 1)
    return tuple(kinds[i] for i in draw(st.lists(order, min_size=1, max_size=8))), None


def plain(widths):
    return st.just(str(UnitSpec(widths)))


def light(kernels):
    """Units with kernel sizes and groups of their own: none, the same at every level, or one each;
    kernel sizes only where there is a strategy for them."""

    @st.composite
    def unit(draw, widths):
        shared = [gcd(*pair) for pair in pairwise(widths)]
        a_level = draw(st.sampled_from((False, False, True)), label="one each")
        kernel = groups = None
        if a_level:
            groups = [draw(st.sampled_from(_divisors(n))) for n in shared]
            kernel = None if kernels is None else [draw(kernels) for _ in shared]
        elif draw(st.sampled_from((False, True)), label="same at every level"):
            groups = draw(st.sampled_from(_divisors(gcd(*shared))))
            kernel = None if kernels is None else draw(kernels)
        return str(UnitSpec(widths, kernel, groups))

    return unit


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _least_side(case: dict) -> int:
    """The smallest side of an image of which every level leaves a pixel."""
    geometry = ConvCase(**case).geometry
    return next(n for n in range(1, 200) if min(min(s) for s in geometry.level_sizes(n, n)) >= 1)
