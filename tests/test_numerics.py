"""Accuracy: beside the loop's own float32 error, with large means, with NaN and infinity."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from module_cases import conv_layer, run_units
from reference_cases import ACTIVATION_NAMES, ConvCase, LinearCase, smooth
from reference_loop import loop
from reference_runs import (
    conv2d,
    converted,
    draw,
    laid_out,
    linear,
    outputs_and_gradients,
    unit_conv2d,
    unit_conv2d_train,
    unit_conv2d_train_with_stats,
    unit_linear,
)
from tolerance import kinds

from bunit_kernels import StackedConv2d, UnitSpec
from bunit_kernels.backends import get_backend

EPS = torch.finfo(torch.float32).eps


# --- the loop's own error ------------------------------------------------------------------------


def assert_as_accurate(actual, loops, exact, what, floor=0.0):
    """``actual`` errs at most 4 times as much as the loop does in the same precision.

    Both the largest and the root mean square error are held to it. Over thousands of elements
    both are steady (the largest of n normal errors lies near ``sqrt(2 ln n)`` sigma for either
    side), over a handful they are not: the loop may be right by chance to the last bit. So an error
    of two units in the last place of the largest value is always allowed, and ``floor`` where the
    caller knows of a larger one that no order of summation avoids.
    """
    exact = exact.double()
    allowed = 2 * EPS * exact.abs().max().item() + floor
    mine, theirs = actual.double() - exact, loops.double() - exact
    for measure in (lambda e: e.abs().max().item(), lambda e: e.square().mean().sqrt().item()):
        assert measure(mine) <= 4 * measure(theirs) + allowed, what


POOL = tuple(map(str, UnitSpec.sample(24, seed=1)))
REALISTIC = (
    (conv2d, ConvCase("2-4", 32, size=(8, 32, 32), out_activation="identity")),
    (conv2d, ConvCase("16-16", 2, size=(2, 28, 28), out_activation="silu")),
    (unit_conv2d, ConvCase("2-4-2", 32, size=(8, 32, 32))),
    (unit_conv2d, ConvCase("2-4-4", 16, size=(4, 28, 28), stride=2, residual="relu")),
    (unit_conv2d, ConvCase(POOL, size=(8, 32, 32), layout="channels_last")),
    (unit_conv2d, ConvCase("16-16-16", 2, size=(2, 28, 28), activation="gelu")),
    (unit_conv2d, ConvCase("4-8-4", 8, kernel_size=5, size=(2, 16, 16), activation="hardswish")),
    (unit_conv2d_train, ConvCase("2-4-2", 16, size=(8, 16, 16))),
    (unit_conv2d_train, ConvCase(POOL, size=(8, 16, 16), residual="relu")),
    (unit_conv2d_train, ConvCase("16-16-16", 2, size=(4, 14, 14))),
    (linear, LinearCase("16-64", 8, size=(64,), out_activation="identity")),
    (unit_linear, LinearCase("4-8-4", 64, size=(128,))),
    (unit_linear, LinearCase("64-64-64", 2, size=(64,), activation="gelu")),
)
realistic_cases = pytest.mark.parametrize(
    ("op", "case"), REALISTIC, ids=[f"{op.__name__}-{str(case)[:50]}" for op, case in REALISTIC]
)


@realistic_cases
def test_outputs_are_as_accurate_as_the_loops(op, case, every_backend, seed):
    norms = op is unit_conv2d_train
    t = converted(draw(case, seed, norms=norms, comparable=False), torch.float32)
    with torch.no_grad():
        actual, loops = op(case, t), loop(case, t)
        exact = loop(case, converted(t, torch.float64))
    assert_as_accurate(actual, loops, exact, str(case))


@realistic_cases
def test_gradients_are_as_accurate_as_the_loops(op, case, every_backend, seed):
    case, norms = smooth(case), op is unit_conv2d_train
    t = converted(draw(case, seed, norms=norms, comparable=False), torch.float32)
    actual, loops = outputs_and_gradients(op, case, t), outputs_and_gradients(loop, case, t)
    exact = outputs_and_gradients(loop, case, converted(t, torch.float64))
    for name in exact:
        assert_as_accurate(actual[name], loops[name], exact[name], name)


# --- large means ---------------------------------------------------------------------------------

LARGE_MEANS = (
    ConvCase("2-4-2", 8, size=(8, 12, 12), padding=0),
    ConvCase("2-4-2", 8, size=(8, 12, 12), kernel_size=1),
    ConvCase("2-4-2", 8, size=(8, 12, 12)),
    ConvCase("16-16", 2, size=(8, 12, 12), padding=0),
    ConvCase(POOL, size=(8, 12, 12), kernel_size=1, layout="channels_last"),
)
large_means = pytest.mark.parametrize("case", LARGE_MEANS, ids=str)


def with_mean(case, seed, mean, norms=True):
    """Inputs of standard deviation 1 around ``mean``."""
    t = draw(case, seed, norms=norms, comparable=False)
    t["x"] = [laid_out(t["x"][0] + mean, case.layout)]
    return converted(t, torch.float32)


def rounding_before_norm(case, exact):
    """How far outputs move if the first level's pre-norm values move by two units in the last place
    of the largest: nothing that stores them in float32 can avoid half of one."""
    first = case.geometry.levels[0]
    weight, x = exact["weights"][0], exact["x"][0]
    level = ConvCase(
        tuple(map(str, first.layout.units)), size=case.size, kernel_size=case.kernel_size,
        padding=case.padding, out_activation="identity", bias=False,
    )  # fmt: skip
    z = loop(level, {"x": [x], "weights": [weight], "biases": [], "gammas": [], "residual": []})
    std = z.std((0, 2, 3), correction=0)
    return (2 * EPS * z.abs().amax((0, 2, 3)) / (std + 1e-3)).max().item()


@pytest.mark.parametrize("mean", [1e3, -1e4])
@large_means
def test_large_mean_through_batch_statistics(case, mean, every_backend, seed):
    t = with_mean(case, seed, mean)
    exact = converted(t, torch.float64)
    with torch.no_grad():
        actual, loops, right = unit_conv2d_train(case, t), loop(case, t), loop(case, exact)
    assert_as_accurate(actual, loops, right, str(case), rounding_before_norm(case, exact))


@large_means
def test_variance_does_not_cancel(case, every_backend, seed):
    """Mean 1000, deviation about 1: a difference of float32 mean squares is off by percents here,
    and what can be had is limited by the rounding of the values themselves."""
    t = with_mean(case, seed, 1e3)
    with torch.no_grad():
        _, actual = unit_conv2d_train_with_stats(case, t)
        _, right = unit_conv2d_train_with_stats(case, converted(t, torch.float64))
    mine, theirs = actual[0], right[0]
    # The values are sums of inputs of size 1000 times weights of about 1, rounded at that size.
    share = 4 * EPS * (1 + 1e3 / theirs.var.sqrt())
    assert ((mine.mean - theirs.mean).abs() <= 16 * EPS * theirs.mean.abs().max()).all()
    assert ((mine.var - theirs.var).abs() <= share * theirs.var).all()


@large_means
def test_gradients_with_a_large_mean(case, every_backend, seed):
    # On channels_last images PyTorch's own batch norm errs more than on the loop's slices of them.
    case = replace(smooth(case), layout="contiguous")
    t = with_mean(case, seed, 1e3)
    exact = converted(t, torch.float64)
    actual, loops = (outputs_and_gradients(f, case, t) for f in (unit_conv2d_train, loop))
    right = outputs_and_gradients(loop, case, exact)
    # Errors of activations are errors of every sum over pixels, one of which may come out small.
    alone = ("output", "grad of x[0]")
    sums = max(value.abs().max().item() for name, value in right.items() if name not in alone)
    for name in right:
        size = right[name].abs().max().item() if name in alone else sums
        floor = rounding_before_norm(case, exact) * size
        assert_as_accurate(actual[name], loops[name], right[name], name, floor)


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e3, 3e4])
def test_constant_channels_have_no_variance(level, every_backend, seed):
    """A batch of equal pixels: what is left of a channel is its beta."""
    case = ConvCase("2-4", 4, size=(4, 8, 8), padding=0, out_activation="identity")
    t = draw(case, seed, norms=True)
    t["x"] = [torch.full_like(t["x"][0], level)]
    t = converted(t, torch.float32)
    with torch.no_grad():
        y, stats = unit_conv2d_train_with_stats(case, t)
    # A mean that is off by an ulp is divided by sqrt(1e-5), the epsilon alone.
    size = stats[0].mean.abs()
    if get_backend() == "torch":
        # Its convolutions may sum pixels near an edge in another order (seen with AVX2), and then a
        # channel is constant but for the rounding of its summands.
        size = level * t["weights"][0].abs().view(size.numel(), -1).sum(1)
    allowed = 4 * EPS * (size / 1e-5**0.5 * t["gammas"][0].abs() + t["betas"][0].abs())
    error = (y - t["betas"][0].view(1, -1, 1, 1)).abs().amax((0, 2, 3))
    assert (error <= allowed + EPS).all()
    assert (stats[0].var <= (4 * EPS * size) ** 2 + 1e-12).all()


@pytest.mark.parametrize("name", ["uniform", "hybrid", "stride"])
def test_large_mean_through_folded_norms(name, every_backend):
    """Eval mode after training on such images: the running mean takes the mean off again."""
    layer = conv_layer(name, padding=0 if name == "uniform" else "same")
    x = torch.randn(8, layer.in_channels, 12, 12) + 1e3
    for norm in layer.norms:
        norm.momentum = 1.0
    layer(x)
    layer.eval()
    units = layer.to_units()
    with torch.no_grad():
        actual, loops = layer(x), run_units(units, x)
        exact = run_units(copy.deepcopy(units).double(), x.double())
    assert_as_accurate(actual, loops, exact, name)


def test_running_statistics_with_a_large_mean(every_backend):
    layer = StackedConv2d("2-4-2", 8, padding=0)
    units, exact = layer.to_units(), copy.deepcopy(layer).to_units().double()
    for step in range(3):
        x = torch.randn(8, 16, 10, 10) + 1e3 * step
        layer(x), run_units(units, x), run_units(exact, x.double())
    loops, right = (StackedConv2d.from_units(u) for u in (units, exact))
    # The second level's inputs are of size 1, with the first one's rounding errors on them.
    floor = 16 * EPS
    for name, value in right.named_buffers():
        mine, theirs = layer.get_buffer(name), loops.get_buffer(name)
        assert_as_accurate(mine, theirs, value, name, floor)


# --- NaN and infinity ----------------------------------------------------------------------------


def assert_same_kinds(actual, expected, what="output", activation=None):
    """PyTorch's own GELU makes NaN or infinity of infinity, as an element falls into a vector or
    into the remainder; which of them is left open."""
    if activation == "gelu":
        assert torch.equal(actual.isfinite(), expected.isfinite()), what
    else:
        assert torch.equal(kinds(actual), kinds(expected)), what


STRANGE = [float("nan"), float("inf"), -float("inf")]
#: Pixels in the interior and at the edges of images that fill no vector, and of ones that do.
PLACES = [(0, 0, 0, 0), (1, 3, 4, 5), (1, 5, 6, 16), (0, 2, 3, 7), (1, 0, 0, 15)]


@pytest.mark.parametrize("value", STRANGE, ids=str)
@pytest.mark.parametrize(
    ("units", "size"),
    [("16-16", (2, 16, 17)), ("2-4", (2, 17, 32)), ("4-3", (2, 16, 30)), ("3-2", (2, 15, 16))],
    ids=str,
)
def test_strange_pixels_where_inputs_are_transformed(units, size, value, every_backend, seed):
    """Transformed inputs (Winograd's) are differences, in which infinity may become NaN: but only
    in the outputs that it reaches. The gradient of the input is made likewise."""
    case = ConvCase(units, 2, size=size, activation="identity", out_activation="identity")
    channels, height, width = case.input_shape[1:]
    for place in [(0, 1, 0, 0), (1, 3, height - 1, width - 1), (0, channels - 1, 3, 7)]:
        for what in ("x", "grad"):
            t = converted(draw(case, seed, comparable=False), torch.float32)
            strange = t[what][0]
            strange[(place[0], place[1] % strange.shape[1], *place[2:])] = value
            actual, expected = (outputs_and_gradients(f, case, t) for f in (conv2d, loop))
            for name in ("output", "grad of x[0]"):
                assert torch.equal(actual[name].isfinite(), expected[name].isfinite()), place
                if value != value:
                    assert torch.equal(actual[name].isnan(), expected[name].isnan()), place


@pytest.mark.parametrize("value", STRANGE, ids=str)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_strange_input_pixels(activation, value, every_backend, seed):
    for units in ("2-4-2", ("2-4-2", "1-2-1:k5", "3-2-1")):
        case = ConvCase(
            units, 3 if units == "2-4-2" else None, size=(2, 7, 17),
            activation=activation, out_activation="identity",
        )  # fmt: skip
        for place in PLACES:
            t = converted(draw(case, seed, comparable=False), torch.float32)
            t["x"][0][place] = value
            with torch.no_grad():
                assert_same_kinds(unit_conv2d(case, t), loop(case, t), place, activation)


@pytest.mark.parametrize("value", STRANGE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_strange_values_through_each_activation(activation, dtype, value, every_backend):
    """A lone pixel and a row of them: vectors and their remainders agree."""
    for width in (1, 5, 16, 33):
        case = ConvCase("1-1", 2, size=(1, 1, width), kernel_size=1, out_activation=activation)
        t = converted(draw(case, comparable=False), dtype)
        t["x"][0][..., width // 2] = value
        assert_same_kinds(conv2d(case, t), loop(case, t), width, activation)


@pytest.mark.parametrize("value", STRANGE, ids=str)
@pytest.mark.parametrize("which", ["weights", "biases"])
def test_strange_parameters(which, value, every_backend, seed):
    """In one unit: the others stay as they are."""
    case = ConvCase("2-4-2", 3, size=(2, 7, 17), padding=0)  # no zeros of a border times infinity
    for level in (0, 1):
        t = converted(draw(case, seed, comparable=False), torch.float32)
        t[which][level].view(-1)[-1] = value
        y = unit_conv2d(case, t)
        assert_same_kinds(y, loop(case, t), level)
        assert y[:, :4].isfinite().all()
        assert y[:, 4:].isfinite().all() == (value == -torch.inf and which == "biases")


@pytest.mark.parametrize("value", STRANGE, ids=str)
def test_strange_features(value, every_backend, seed):
    for case in (LinearCase("4-8-4", 5, size=(9,)), LinearCase(("4-8-4", "1-2-1"), size=(9,))):
        t = converted(draw(case, seed, comparable=False), torch.float32)
        t["x"][0][4, 2] = value
        actual = outputs_and_gradients(unit_linear, case, t)
        expected = outputs_and_gradients(loop, case, t)
        for name in expected:
            assert_same_kinds(actual[name], expected[name], name, case.activation)


@pytest.mark.parametrize("where", ["x", "grad", "residual", "weights", "gammas", "betas"])
@pytest.mark.parametrize("value", STRANGE, ids=str)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "identity"])
def test_strange_values_in_training(activation, value, where, every_backend, seed):
    """A whole channel of the batch is spoilt, as its statistics are; nothing beyond its unit."""
    case = ConvCase("2-4-2", 3, size=(3, 6, 9), padding=0, residual="relu", activation=activation)
    t = converted(draw(case, seed, norms=True, comparable=False), torch.float32)
    t[where][0].view(-1)[t[where][0].numel() // 2] = value
    actual = outputs_and_gradients(unit_conv2d_train, case, t)
    expected = outputs_and_gradients(loop, case, t)
    for name in expected:
        assert_same_kinds(actual[name], expected[name], name)


# Not relu6 and hardswish: PyTorch's own gradient of theirs at NaN is zero or not, as an element
# falls into a vector or the remainder.
@pytest.mark.parametrize("where", ["x", "grad", "weights"])
@pytest.mark.parametrize("value", STRANGE, ids=str)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "identity"])
def test_strange_values_in_gradients(activation, value, where, every_backend, seed):
    case = ConvCase("2-4-2", 3, size=(2, 6, 19), padding=0, activation=activation)
    t = converted(draw(case, seed, comparable=False), torch.float32)
    t[where][0].view(-1)[t[where][0].numel() // 2] = value
    actual = outputs_and_gradients(unit_conv2d, case, t)
    expected = outputs_and_gradients(loop, case, t)
    if where == "weights":  # at the border, zeros beyond the gradient may meet the strange weight
        for gradients in (actual, expected):
            gradients["grad of x[0]"] = gradients["grad of x[0]"][..., 2:-2, 2:-2]
    for name in expected:
        assert_same_kinds(actual[name], expected[name], name, activation)


def test_nan_in_the_running_statistics(every_backend):
    """After a diverged step, as BatchNorm's: the channels of the unit that saw it, no others."""
    layer = conv_layer("uniform", dtype=torch.float64)
    units = layer.to_units()
    x = torch.randn(3, 10, 7, 7).double()
    x[1, 4, 3, 3] = float("nan")
    layer(x), run_units(units, x)
    for mine, loops in zip(layer.to_units().buffers(), units.buffers(), strict=True):
        assert_same_kinds(mine, loops)
    assert layer.norms[0].running_mean.isnan().tolist() == [False] * 8 + [True] * 4 + [False] * 8
    layer.eval(), units.eval()
    assert_same_kinds(layer(x), run_units(units, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_overflow_is_infinite(dtype, every_backend):
    case = ConvCase("1-1", 3, size=(1, 3, 19), kernel_size=1, out_activation="identity", bias=False)
    t = converted(draw(case, comparable=False), dtype)
    large = torch.finfo(dtype).max / 2
    t["x"] = [torch.full_like(t["x"][0], large)]
    t["weights"] = [torch.tensor([4.0, -4.0, 1.0], dtype=dtype).view(3, 1, 1, 1)]
    y = conv2d(case, t)
    assert (y[:, 0] == float("inf")).all() and (y[:, 1] == -float("inf")).all()
    assert (y[:, 2] == large).all()


def test_values_too_small_for_a_normal_number(every_backend):
    """Denormal inputs are not taken for zeros."""
    case = ConvCase("1-1", 2, size=(1, 3, 19), kernel_size=1, out_activation="relu", bias=False)
    t = converted(draw(case, comparable=False), torch.float32)
    t["x"] = [torch.full_like(t["x"][0], 1e-42)]
    t["weights"] = [torch.full_like(t["weights"][0], 1e10)]
    torch.testing.assert_close(conv2d(case, t), loop(case, t), rtol=1e-6, atol=0)
    assert (conv2d(case, t) > 9e-33).all()
