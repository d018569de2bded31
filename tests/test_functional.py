"""Every operation of every backend against the reference loop in float64, with all gradients."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from reference_cases import (
    ACTIVATION_NAMES,
    TRAIN_CONVS,
    ConvCase,
    LinearCase,
    random_conv,
    random_linear,
    smooth,
)
from reference_checks import (
    CPU_BACKENDS,
    check_against_reference,
    check_backends,
    check_nonfinite,
    largest,
    named_cases,
    named_cases_at_low_precision,
)
from reference_loop import loop
from reference_runs import (
    conv2d,
    converted,
    draw,
    laid_out,
    linear,
    outputs_and_gradients,
    roundings,
    unit_conv2d,
    unit_conv2d_train,
    unit_conv2d_train_with_stats,
    unit_linear,
)
from tolerance import assert_near, tolerance

from bunit_kernels import backend

FULL = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@named_cases
def test_reference_is_the_plain_loop(op, case, seed):
    norms = op is unit_conv2d_train
    tensors = draw(case, seed, norms=norms)
    share = tolerance(torch.float64, case.longest_sum, roundings(case))
    with backend("reference"):
        actual = outputs_and_gradients(op, case, tensors)
    expected = outputs_and_gradients(loop, case, tensors)
    for name, value in expected.items():
        assert_near(actual[name], value, share, f"{name} of {case}")


@named_cases
@pytest.mark.parametrize("dtype", FULL, ids=str)
def test_outputs_and_gradients(op, case, dtype, seed):
    check_backends(CPU_BACKENDS, op, case, dtype, seed)


@named_cases_at_low_precision
def test_outputs_and_gradients_at_low_precision(op, case, dtype, seed):
    check_backends(CPU_BACKENDS, op, smooth(case), dtype, seed)


@pytest.mark.parametrize("index", range(60))
@pytest.mark.parametrize("op", [conv2d, unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_random_convolutions(op, index, seed):
    numbers = random.Random(seed)
    case = random_conv(numbers, depth=1 if op is conv2d else None)
    if op is conv2d:
        case = replace(case, residual=None)
    if op is unit_conv2d_train:  # few different values a channel may be all but the same
        case = replace(case, size=(max(12, case.size[0]), *case.size[1:]))
        case = replace(case, layout="sliced") if case.layout == "expanded" else case
    check_backends(CPU_BACKENDS, op, case, torch.float32, seed)


@pytest.mark.parametrize("index", range(60))
@pytest.mark.parametrize("op", [linear, unit_linear], ids=lambda f: f.__name__)
def test_random_linear_units(op, index, seed):
    case = random_linear(random.Random(seed), depth=1 if op is linear else None)
    check_backends(CPU_BACKENDS, op, case, torch.float32, seed)


@pytest.mark.parametrize("dtype", [*FULL, *HALF], ids=str)
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_cover_their_whole_range(name, dtype, every_backend, seed):
    """Values far on both sides, where exponentials and saturations are."""
    x = torch.linspace(-30, 30, 2 * 4 * 61, dtype=torch.float64).view(2, 4, 1, 61)
    case = ConvCase("1-1", 4, size=(2, 1, 61), kernel_size=1, out_activation=name, bias=False)
    tensors = {**draw(case, seed), "x": [x], "weights": [torch.ones(4, 1, 1, 1).double()]}
    actual = conv2d(case, converted(tensors, dtype))
    expected = loop(case, converted(converted(tensors, dtype), torch.float64))
    # Element by element: a tail that is off by a factor is small beside the largest value. GELU's
    # own formula x * (1 + erf(..)) / 2 cancels in the tail to an error of x times epsilon.
    eps, inner_eps = (torch.finfo(d).eps for d in (dtype, torch.promote_types(dtype, FULL[0])))
    allowed = 4 * eps * expected.abs() + 4 * inner_eps * x.abs()
    assert ((actual.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "grad", "weights"])
def test_nan_and_infinity_travel_through_linear_units(where, value, name, every_backend, seed):
    """One row or weight: the same results are not finite as in the loop."""
    case = LinearCase(("4-8-4", "1-2-1") * 2, size=(37,), activation=name, out_activation=name)
    tensors = draw(case, seed)
    tensors[where][0][3] = value
    check_nonfinite(case, tensors, torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("units", [("2-4-2",) * 3, ("1-3-1",) * 2, ("2-4-2", "1-2-3"), ("2-1-2",)])
@pytest.mark.parametrize("op", [unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_memory_format_is_kept(op, units, layout, every_backend, seed):
    case = ConvCase(units, layout=layout, residual="relu")
    y = op(case, draw(case, seed, norms=op is unit_conv2d_train))
    assert y.is_contiguous(memory_format=FORMATS[layout])


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("units", [("2-4",) * 3, ("1-1",) * 2, ("4-1",) * 2, ("1-1", "1-1:k1")])
def test_memory_format_is_kept_by_one_level(units, layout, weights, every_backend, seed):
    case = ConvCase(units, layout=layout)
    tensors = draw(case, seed)
    tensors["weights"] = [laid_out(w, weights) for w in tensors["weights"]]
    assert conv2d(case, tensors).is_contiguous(memory_format=FORMATS[layout])


@pytest.mark.parametrize("wanted", ["x", "weights", "biases", "residual"])
def test_gradient_of_one_input_alone(wanted, every_backend, seed):
    case = ConvCase("2-4-2", 3, residual="relu")
    tensors = draw(case, seed)
    expected = outputs_and_gradients(loop, case, tensors)
    tensors[wanted] = [t.requires_grad_() for t in tensors[wanted]]
    unit_conv2d(case, tensors).backward(tensors["grad"][0])
    for i, t in enumerate(tensors[wanted]):
        name = f"grad of {wanted}[{i}]"
        assert_near(t.grad, expected[name], tolerance(torch.float64, 200, 10), name)


def test_gradient_of_a_sum_comes_as_an_expanded_scalar(every_backend, seed):
    case = ConvCase("2-4-2", 3)
    tensors = draw(case, seed)
    tensors["grad"] = [torch.ones(()).double().expand(case.output_shape)]
    for op in (unit_conv2d, unit_conv2d_train):
        inputs = tensors | draw(case, seed, norms=op is unit_conv2d_train)
        inputs["grad"] = tensors["grad"]
        actual = outputs_and_gradients(op, case, inputs)
        expected = outputs_and_gradients(loop, case, inputs)
        for name, value in expected.items():
            assert_near(actual[name], value, tolerance(torch.float64, 200, 10), name)


@pytest.mark.parametrize("images", FORMATS)
@pytest.mark.parametrize("op", [conv2d, unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_parameters_may_have_any_strides(op, images, every_backend, seed):
    units = "2-4" if op is conv2d else "2-4-2"
    case = ConvCase(units, 3, layout=images, grad_layout=images)
    tensors = draw(case, seed, norms=op is unit_conv2d_train)
    expected = outputs_and_gradients(op, case, tensors)
    for layout in ("channels_last", "transposed", "sliced"):
        parameters = ("weights", "biases", "gammas", "betas")
        moved = {name: [laid_out(t, layout) for t in tensors[name]] for name in parameters}
        actual = outputs_and_gradients(op, case, tensors | moved)
        for name, value in expected.items():
            assert_near(actual[name], value, tolerance(torch.float64, 200, 10), name)


def test_arguments_are_left_as_they_were(every_backend, seed):
    case = ConvCase("2-4-2", 3, residual="relu")
    for op in (unit_conv2d, unit_conv2d_train):
        tensors = draw(case, seed, norms=op is unit_conv2d_train)
        before = {name: [t.clone() for t in ts] for name, ts in tensors.items()}
        outputs_and_gradients(op, case, tensors)
        assert all(map(torch.equal, flat(tensors), flat(before)))


def flat(tensors):
    return [t for ts in tensors.values() for t in ts]


@pytest.mark.parametrize("dtype", [*FULL, *HALF], ids=str)
@pytest.mark.parametrize("case", [c for c in TRAIN_CONVS if len(str(c)) % 3 == 0], ids=str)
def test_batch_statistics(case, dtype, seed):
    """Mean and unbiased variance of what each level gives before its norm."""
    tensors = converted(draw(case, seed, norms=True), dtype)
    with backend("reference"):
        _, expected = unit_conv2d_train_with_stats(case, converted(tensors, torch.float64))
    share = tolerance(dtype, case.longest_sum, roundings(case))
    for name in CPU_BACKENDS:
        with backend(name):
            _, actual = unit_conv2d_train_with_stats(case, tensors)
        for mine, theirs in zip(actual, expected, strict=True):
            # A mean near zero is a sum of values of the size of the standard deviation.
            deviation = largest(theirs.var) ** 0.5
            assert_near(mine.mean, theirs.mean, share, f"mean of {name}", deviation)
            assert_near(mine.var, theirs.var, 2 * share, f"variance of {name}, a square")


def test_batch_statistics_have_no_gradient(every_backend, seed):
    case = ConvCase("2-4-2", 3)
    tensors = draw(case, seed, norms=True)
    tensors["weights"] = [w.requires_grad_() for w in tensors["weights"]]
    y, stats = unit_conv2d_train_with_stats(case, tensors)
    assert y.requires_grad
    assert not any(t.requires_grad for level in stats for t in level)


def test_gammas_and_betas_may_be_float32_beside_bfloat16(every_backend, seed):
    case = smooth(ConvCase("2-4-2", 3))
    tensors = draw(case, seed, norms=True)
    rounded = converted(tensors, torch.bfloat16)
    norms = {name: converted(tensors, torch.float32)[name] for name in ("gammas", "betas")}
    actual = outputs_and_gradients(unit_conv2d_train, case, rounded | norms)
    expected = outputs_and_gradients(loop, case, converted(rounded | norms, torch.float64))
    share = tolerance(torch.bfloat16, case.longest_sum, roundings(case))
    for name, value in expected.items():
        of_norm = "gammas" in name or "betas" in name
        assert actual[name].dtype == (torch.float32 if of_norm else torch.bfloat16)
        assert_near(actual[name], value, share, name)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("op", [conv2d, unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_autocast(op, dtype, every_backend, seed):
    """Under autocast an operation computes, and returns, what it does for rounded arguments;
    parameters get gradients of their own dtype. Norms' parameters are not rounded."""
    case = smooth(ConvCase("2-4" if op is conv2d else "2-4-2", 3, residual=None))
    norms = op is unit_conv2d_train
    tensors = converted(draw(case, seed, norms=norms), torch.float32)
    tensors["grad"] = [tensors["grad"][0].to(dtype)]
    with torch.autocast("cpu", dtype):
        actual = outputs_and_gradients(op, case, tensors)
    expected = outputs_and_gradients(loop, case, converted(tensors, torch.float64))
    share = tolerance(dtype, case.longest_sum, roundings(case) + 2)
    for name, value in expected.items():
        assert actual[name].dtype == (dtype if name == "output" else torch.float32)
        assert_near(actual[name], value, share, name)


@pytest.mark.parametrize("op", [linear, unit_linear], ids=lambda f: f.__name__)
def test_autocast_of_linear_units(op, every_backend, seed):
    case = smooth(LinearCase("4-8" if op is linear else "4-8-4", 3))
    tensors = converted(draw(case, seed), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = op(case, tensors)
    assert actual.dtype == torch.bfloat16
    expected = loop(case, converted(tensors, torch.float64))
    assert_near(actual, expected, tolerance(torch.bfloat16, 16, roundings(case)), str(case))


def test_autocast_leaves_float64_alone(every_backend, seed):
    case = ConvCase("2-4-2", 3)
    tensors = draw(case, seed)
    with torch.autocast("cpu", torch.bfloat16):
        y = unit_conv2d(case, tensors)
    assert torch.equal(y, unit_conv2d(case, tensors))


def test_strided_levels_of_single_pixels(every_backend, seed):
    """Of one unit in channels_last, where PyTorch's own gradient of the weight may be wrong."""
    case = ConvCase("4-6", 1, size=(4, 12, 18), kernel_size=1, stride=3, layout="channels_last")
    case = replace(case, grad_layout="channels_last")
    check_against_reference(conv2d, case, torch.float32, seed)
