"""Whole convolutional units of the ``triton`` backend under Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from opchecked import opchecked
from reference_cases import TRAIN_CONVS, UNIT_CONVS, ConvCase, quick, smooth, some
from reference_checks import check_against_reference, largest
from reference_runs import (
    conv2d,
    converted,
    draw,
    laid_out,
    outputs_and_gradients,
    roundings,
    unit_conv2d,
    unit_conv2d_train,
    unit_conv2d_train_with_stats,
)
from tolerance import assert_near, tolerance

from bunit_kernels import StackedConv2d, StackedLinear, backend, backends

if reason := backends.why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from bunit_kernels.triton_kernels import NAMESPACE


@pytest.fixture(autouse=True)
def triton():
    with backend("triton"):
        yield


@pytest.mark.parametrize("case", some(quick(UNIT_CONVS), 11), ids=str)
def test_outputs_and_gradients(case, seed):
    check_against_reference(unit_conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("case", some(quick(TRAIN_CONVS), 10), ids=str)
def test_training(case, seed):
    check_against_reference(unit_conv2d_train, case, torch.float32, seed)


@pytest.mark.parametrize("op", [unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
@pytest.mark.parametrize("units", ["2-4-4-2:k1,3,1:g1,4,1", ("2-4-2:k3,1:g2", "1-2-2")], ids=str)
def test_kernel_sizes_and_groups_of_levels(op, units, seed):
    case = ConvCase(units, 1 if isinstance(units, str) else None, size=(3, 4, 5), stride=2)
    case = replace(case, bias=op is unit_conv2d, residual="relu")
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize("units", [("2-3-3",) * 3, ("2-3-3", "1-2-1")], ids=str)
@pytest.mark.parametrize("op", [unit_conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_shuffled_outputs(op, units, seed):
    case = ConvCase(units, size=(2, 6, 7), shuffle=True, residual="relu")
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", some(quick(TRAIN_CONVS), 30), ids=str)
def test_training_at_low_precision(case, dtype, seed):
    check_against_reference(unit_conv2d_train, smooth(case), dtype, seed)


@pytest.mark.parametrize("case", some(quick(TRAIN_CONVS), 30), ids=str)
def test_batch_statistics(case, seed):
    tensors = converted(draw(case, seed, norms=True), torch.float32)
    _, actual = unit_conv2d_train_with_stats(case, tensors)
    with backend("reference"):
        _, expected = unit_conv2d_train_with_stats(case, converted(tensors, torch.float64))
    share = tolerance(torch.float32, case.longest_sum, roundings(case))
    for mine, theirs in zip(actual, expected, strict=True):
        assert_near(mine.mean, theirs.mean, share, "mean", largest(theirs.var.sqrt()))
        assert_near(mine.var, theirs.var, 2 * share, "variance, a square")


@pytest.mark.parametrize("op", [conv2d, unit_conv2d_train], ids=lambda f: f.__name__)
def test_parameters_may_have_gaps(op, seed):
    case = ConvCase("2-4" if op is conv2d else "2-4-2", 2, size=(4, 3, 4))
    tensors = converted(draw(case, seed, norms=op is unit_conv2d_train), torch.float32)
    expected = outputs_and_gradients(op, case, tensors)
    for name in ("weights", "biases", "gammas", "betas"):
        moved = {name: [laid_out(t, "sliced") for t in tensors[name]]}
        actual = outputs_and_gradients(op, case, tensors | moved)
        for what, value in expected.items():
            torch.testing.assert_close(actual[what], value, msg=f"{what} with {name} of gaps")


def test_variance_of_values_far_from_zero(seed):
    """A sum of squares minus a squared mean would leave nothing of it in float32."""
    case = ConvCase("1-1-1", 4, size=(4, 16, 16), kernel_size=1, bias=False)
    tensors = converted(draw(case, seed, norms=True), torch.float32)
    tensors["x"] = [tensors["x"][0] + 4000]
    tensors["weights"] = [torch.ones_like(w) for w in tensors["weights"]]
    _, stats = unit_conv2d_train_with_stats(case, tensors)
    assert_near(stats[0].var, tensors["x"][0].double().var((0, 2, 3)), 1e-4)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_module_compiles_and_keeps_its_memory_format(form):
    layer = StackedConv2d(("2-4-2", "1-2-3"), stride=2)
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=form).requires_grad_()
    expected = layer(x)
    assert expected.is_contiguous(memory_format=form)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    actual = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    (actual_grad,) = torch.autograd.grad(actual.sum(), x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_grad, expected_grad)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_hidden_level_of_one_channel_keeps_the_memory_format(form):
    """One channel shows no format: what follows it takes that of the layer's input."""
    layer = StackedConv2d("2-1-2", 1)
    x = torch.randn(2, 2, 6, 5).contiguous(memory_format=form).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=form)
    assert layer.eval()(x).is_contiguous(memory_format=form)
    with opchecked(NAMESPACE):
        layer.train()(x).sum().backward()
        layer.eval()(x).sum().backward()


def test_autocast():
    layer = StackedConv2d("2-4-2", 2)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters()) and x.grad is not None


@pytest.mark.parametrize("name", ["layer", "linear", "unit_linear"])
def test_fake_kernels_tell_shapes_strides_and_dtypes(name):
    """Every operator called on the way, forward and backward, passes opcheck."""

    def run(layer, x):
        layer(x.requires_grad_()).sum().backward()

    with opchecked(NAMESPACE):
        if name == "layer":
            x = torch.randn(3, 6, 5, 4).contiguous(memory_format=torch.channels_last)
            run(StackedConv2d("2-4-2", 3, stride=2), x)
            run(StackedConv2d("2-4-2", 3).eval(), x.detach())
        else:
            run(StackedLinear("4-8" if name == "linear" else "4-8-4", 3), torch.randn(2, 5, 12))


def test_no_second_derivative_in_training():
    layer = StackedConv2d("2-4-2", 1)
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()
