"""StackedConv2d and StackedLinear against the loop of modules that they stand for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from module_cases import (
    CONV_LAYERS,
    LINEAR_LAYERS,
    conv_layer,
    gradients_by_unit,
    image,
    linear_layer,
    lived,
    run_units,
)
from tolerance import assert_near, tolerance
from torch import nn
from torch.utils.checkpoint import checkpoint

from bunit_kernels import PAPER_POOL, StackedConv2d, StackedLinear, UnitSpec

NEAR = tolerance(torch.float64, terms=1000, roundings=30)


def assert_same_as_loop(layer, x, dim, **forward):
    """Output, gradients and buffers, with ``layer`` as it is and with its loop."""
    layer.zero_grad()
    units = layer.to_units()
    x, x_loop = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(x, **forward), run_units(units, x_loop, dim)
    assert_near(y, expected, NEAR, "output")
    grad = torch.randn_like(expected)
    y.backward(grad)
    expected.backward(grad)
    assert_near(x.grad, x_loop.grad, NEAR, "grad of x")
    # A bias before a norm with batch statistics has no gradient but rounding errors.
    scale = max(p.grad.abs().max() for p in units.parameters())
    for mine, loops in zip(gradients_by_unit(layer), units.parameters(), strict=True):
        assert_near(mine, loops.grad, NEAR, "grad of a parameter", scale)
    for mine, loops in zip(layer.to_units().buffers(), units.buffers(), strict=True):
        assert_near(mine, loops, NEAR, "buffer")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CONV_LAYERS)
def test_conv_layer_is_its_loop(name, training, every_backend):
    layer = conv_layer(name, dtype=torch.float64).train(training)
    assert_same_as_loop(layer, image(layer), dim=1)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", LINEAR_LAYERS)
def test_linear_layer_is_its_loop(name, training, every_backend):
    layer = linear_layer(name, dtype=torch.float64).train(training)
    assert_same_as_loop(layer, torch.randn(7, layer.in_features).double(), dim=-1)


def test_linear_layer_takes_any_leading_dimensions(every_backend):
    for name in ("uniform", "norm"):
        layer = linear_layer(name, dtype=torch.float64)
        x = torch.randn(2, 3, 5, layer.in_features).double()
        y = copy.deepcopy(layer)(x.flatten(0, 2))
        assert torch.equal(layer(x).flatten(0, 2), y)
    layer = linear_layer("uniform")
    assert layer(torch.randn(layer.in_features)).shape == (layer.out_features,)


def test_auto_is_the_default_and_gives_what_a_backend_gives():
    layer = conv_layer("hybrid", dtype=torch.float64).eval()
    x = image(layer)
    assert_near(layer(x), run_units(layer.to_units(), x), NEAR)


@pytest.mark.parametrize("residual_activation", ["identity", "relu"])
@pytest.mark.parametrize("mode", ["train", "eval", "one norm frozen", "no norm"])
def test_residual(mode, residual_activation, every_backend):
    layer = conv_layer("no norm" if mode == "no norm" else "stride", dtype=torch.float64)
    layer.train(mode != "eval")
    if mode == "one norm frozen":
        layer.norms[0].eval()
    x = image(layer)
    expected = run_units(layer.to_units(), x)
    residual = torch.randn_like(expected).requires_grad_()
    expected = expected + residual
    expected = expected.relu() if residual_activation == "relu" else expected
    y = layer(x, residual, residual_activation)
    assert_near(y, expected, NEAR)
    grad = torch.randn_like(y)
    (mine,) = torch.autograd.grad(y, residual, grad)
    (loops,) = torch.autograd.grad(expected, residual, grad)
    assert_near(mine, loops, NEAR)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 0.0, 1.0, None])
def test_running_statistics_after_several_steps(momentum, every_backend):
    layer = conv_layer("hybrid", dtype=torch.float64)
    for norm in layer.norms:
        norm.momentum = momentum
    units = layer.to_units()
    for step in range(4):
        x = image(layer) * (step + 1) + step
        layer(x)
        run_units(units, x)
    for mine, loops in zip(layer.to_units().buffers(), units.buffers(), strict=True):
        assert_near(mine, loops, NEAR)
    assert all(norm.num_batches_tracked == 7 for norm in layer.norms)


def test_eval_leaves_the_running_statistics_alone(every_backend):
    layer = conv_layer("uniform").eval()
    before = [b.clone() for b in layer.buffers()]
    layer(image(layer))
    assert all(map(torch.equal, layer.buffers(), before))


@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)], ids=str)
def test_frozen_norms(frozen, every_backend):
    """A norm in eval mode inside a layer in training mode, as in fine-tuning."""
    layer = conv_layer("hybrid", dtype=torch.float64)
    for i in frozen:
        layer.norms[i].eval()
    assert_same_as_loop(layer, image(layer), dim=1)


def test_norms_without_parameters_or_running_statistics(every_backend):
    layer = conv_layer("uniform", dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        for options in ({"affine": False}, {"track_running_stats": False}):
            replaced = copy.deepcopy(layer)
            for i, norm in enumerate(layer.norms):
                new = nn.BatchNorm2d(norm.num_features, **options).double().train(training)
                replaced.norms[i] = new
            # By itself a BatchNorm of that kind does what the level path must do with it.
            x = image(layer)
            expected = x
            for i, level in enumerate(replaced.geometry.levels):
                weight = replaced.weights[i]
                z = nn.functional.conv2d(
                    expected, weight, None, 1, level.pad(level.layout.kernel_size), groups=5
                )
                expected = copy.deepcopy(replaced.norms[i])(z).relu()
            assert_near(replaced(x), expected, NEAR)


def test_norms_of_another_kind_are_called(every_backend):
    layer = conv_layer("uniform", dtype=torch.float64)
    layer.norms[1] = nn.GroupNorm(5, 10).double()
    x = image(layer)
    hidden = layer.norms[0](nn.functional.conv2d(x, layer.weights[0], padding=1, groups=5)).relu()
    z = nn.functional.conv2d(hidden, layer.weights[1], padding=1, groups=5)
    assert_near(layer(x), layer.norms[1](z).relu(), NEAR)


def test_sync_batch_norm_conversion(every_backend):
    """In a single process a SyncBatchNorm is a BatchNorm."""
    layer = conv_layer("hybrid", dtype=torch.float64)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in converted.norms)
    for training in (True, False):
        x = image(layer)
        assert_near(converted.train(training)(x), layer.train(training)(x), NEAR)
        for mine, loops in zip(converted.buffers(), layer.buffers(), strict=True):
            assert_near(mine, loops, NEAR)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_of_norms_run(register, training, every_backend):
    layer = conv_layer("uniform", dtype=torch.float64).train(training)
    x = image(layer).requires_grad_()
    expected = copy.deepcopy(layer)(x)
    calls = []
    getattr(layer.norms[1], register)(lambda *_: calls.append(1))
    y = layer(x)
    assert_near(y, expected, NEAR)
    y.sum().backward()
    assert calls == [1]


def test_a_norm_with_another_eps(every_backend):
    layer = conv_layer("uniform", dtype=torch.float64)
    layer.norms[0].eps, layer.norms[1].eps = 0.1, 1e-3
    for training in (True, False):
        assert_same_as_loop(layer.train(training), image(layer), dim=1)


def test_folded_gives_weights_without_norms(every_backend):
    layer = conv_layer("bias and norm", dtype=torch.float64).eval()
    weights, biases = layer.folded()
    bare = StackedConv2d(layer.units, norm=None, activation=layer.activation, dtype=torch.float64)
    bare.load_state_dict(
        {f"weights.{i}": w for i, w in enumerate(weights)}
        | {f"biases.{i}": b for i, b in enumerate(biases)}
    )
    x = image(layer)
    assert_near(bare(x), layer(x), NEAR)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["uniform", "hybrid", "no norm", "deep"])
def test_empty_batch(name, training, every_backend):
    layer = conv_layer(name).train(training)
    x = torch.empty(0, layer.in_channels, 8, 9, requires_grad=True)
    expected = copy.deepcopy(layer).to_units()
    y_loop = run_units(expected, x)
    y = layer(x)
    assert y.shape == y_loop.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape for p in layer.parameters())
    assert all((p.grad == 0).all() for p in layer.weights)
    for mine, loops in zip(layer.to_units().buffers(), expected.buffers(), strict=True):
        assert torch.equal(mine, loops)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_images_of_one_pixel(training, every_backend):
    layer = conv_layer("hybrid", dtype=torch.float64).train(training)
    assert_same_as_loop(layer, image(layer, batch=8, size=(1, 1)), dim=1)


def test_one_value_a_channel_has_no_variance(every_backend):
    layer = conv_layer("uniform")
    with pytest.raises(ValueError, match="more than one value a channel, got one image and one"):
        layer(torch.randn(1, layer.in_channels, 1, 1))
    assert all(norm.num_batches_tracked == 3 for norm in layer.norms)
    layer.eval()(torch.randn(1, layer.in_channels, 1, 1))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["uniform", "hybrid", "one level"])
def test_channels_last(name, training, every_backend):
    layer = conv_layer(name, dtype=torch.float64).train(training)
    x = image(layer)
    expected = copy.deepcopy(layer)(x)
    y = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_near(y, expected, NEAR)
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype, training, every_backend):
    layer = conv_layer("hybrid", dtype=dtype).train(training)
    x = image(layer)
    expected = run_units(copy.deepcopy(layer).double().to_units(), x.double())
    y = layer(x)
    assert y.dtype == dtype
    # Folding rounds each weight once more; a running mean takes off about as much as is there.
    assert_near(y, expected, 2 * tolerance(dtype, terms=100, roundings=16))
    y.sum().backward()
    assert all(p.grad.dtype == dtype for p in layer.parameters())


@pytest.mark.parametrize("name", ["hybrid", "light hybrid"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_keeps_parameters_and_statistics_in_float32(training, name, every_backend):
    layer = conv_layer(name).train(training)
    x = image(layer)
    expected = run_units(copy.deepcopy(layer).double().to_units(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert_near(y, expected, 2 * tolerance(torch.bfloat16, terms=100, roundings=16))
    y.sum().backward()
    tensors = [*layer.parameters(), *(p.grad for p in layer.parameters())]
    assert {t.dtype for t in tensors} == {torch.float32}
    assert {norm.running_mean.dtype for norm in layer.norms} == {torch.float32}


def test_checkpointing_gives_the_same_gradients(every_backend):
    layer = conv_layer("uniform", norm=None, bias=True)
    x = image(layer).requires_grad_()
    plain = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    y = checkpoint(layer, x, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    assert all(map(torch.equal, plain, again))


def test_checkpointing_in_training_mode(every_backend):
    layer = conv_layer("hybrid")
    x = image(layer).requires_grad_()
    plain = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    y = checkpoint(layer, x, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    assert all(map(torch.equal, plain, again))


def test_parameters_without_gradient(every_backend):
    layer = conv_layer("uniform", dtype=torch.float64)
    for parameter in (*layer.weights, *layer.norms.parameters()):
        parameter.requires_grad_(False)
    layer.norms[0].weight.requires_grad_(True)
    layer(image(layer)).square().sum().backward()
    given = [name for name, p in layer.named_parameters() if p.grad is not None]
    assert given == ["norms.0.weight"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_inference_mode(training, every_backend):
    layer = conv_layer("hybrid").train(training)
    x = image(layer)
    expected = copy.deepcopy(layer)(x)
    with torch.inference_mode():
        y = layer(x)
    assert torch.equal(y, expected) and not y.requires_grad


def test_functional_call_runs_with_other_parameters(every_backend):
    layer = conv_layer("uniform", dtype=torch.float64).eval()
    other = conv_layer("uniform", dtype=torch.float64).eval()
    x = image(layer)
    state = other.state_dict()
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), other(x))


# --- construction --------------------------------------------------------------------------------


def test_names_and_numbers():
    layer = StackedConv2d(["1-2-1", "3-2-2:k5"], stride=2, dilation=3, activation="gelu")
    assert layer.units == (UnitSpec("1-2-1"), UnitSpec("3-2-2:k5"))
    assert (layer.in_channels, layer.out_channels) == (4, 3)
    assert (layer.stride, layer.padding, layer.dilation) == (2, "same", 3)
    assert (layer.activation, layer.out_activation) == ("gelu", "relu")
    linear = StackedLinear("4-8-2", 3)
    assert (linear.in_features, linear.out_features) == (12, 6)
    assert (linear.in_channels, linear.out_channels) == (12, 6)


@pytest.mark.parametrize("name", CONV_LAYERS)
def test_parameters_are_as_many_as_the_loops(name):
    layer = conv_layer(name)
    loop = layer.to_units()
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in loop.parameters())
    assert all(p.requires_grad and p.is_leaf for p in layer.parameters())


def test_bias_is_there_where_no_norm_is():
    assert StackedConv2d("2-4-2").biases is None
    assert StackedConv2d("2-4-2").norms is not None
    assert len(StackedConv2d("2-4-2", norm=None).biases) == 2
    assert StackedConv2d("2-4-2", norm=None, bias=False).biases is None
    assert len(StackedConv2d("2-4-2", bias=True).biases) == 2
    assert StackedLinear("2-4-2").norms is None
    assert StackedLinear("2-4-2", norm="batch").biases is None


def test_norms_are_real_batch_norms_over_all_channels():
    layer = StackedConv2d(["1-2-1", "3-4-5"])
    assert [type(n) for n in layer.norms] == [nn.BatchNorm2d] * 2
    assert [n.num_features for n in layer.norms] == [6, 6]
    assert type(StackedLinear("2-4-2", norm="batch").norms[0]) is nn.BatchNorm1d


def test_vectors_and_weights_are_told_apart_by_their_dimensions():
    """Filters that exempt vectors from weight decay must see weights as weights."""
    for layer in (StackedConv2d(PAPER_POOL, bias=True), StackedLinear(["1-2-1", "3-2-1"])):
        assert all(w.dim() > 1 for w in layer.weights)
        assert all(b.dim() == 1 for b in layer.biases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_device_and_dtype(dtype):
    layer = StackedConv2d(PAPER_POOL, bias=True, dtype=dtype, device="meta")
    assert all(p.dtype == dtype and p.device.type == "meta" for p in layer.parameters())
    x = torch.empty(2, layer.in_channels, 8, 8, dtype=dtype, device="meta")
    for training in (True, False):
        y = layer.train(training)(x)
        assert y.shape == (2, layer.out_channels, 8, 8) and y.dtype == dtype


def test_meta_layer_becomes_real():
    layer = StackedConv2d("2-4-2", 3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.eval()(image(layer)).isfinite().all()


def test_repr_says_what_it_is():
    layer = StackedConv2d("2-4-2", 64, stride=2, norm=None)
    text = layer.extra_repr()
    for part in ("64 x 2-4-2", "128 -> 128", "kernel_size=3", "stride=2", "bias"):
        assert part in text
    assert "activation=relu" in text and "padding" not in text and "dilation" not in text
    text = StackedConv2d(["1-2-1", "3-2-1:k5", "1-2-1"], dilation=2).extra_repr()
    assert "2 x 1-2-1, 1 x 3-2-1:k5" in text and "5 -> 3" in text and "dilation=2" in text
    assert "padding=0" in StackedConv2d("1-2-1", padding=0).extra_repr()
    assert "20 x 4-8-4, 80 -> 80" in StackedLinear("4-8-4", 20).extra_repr()


# --- initialisation ------------------------------------------------------------------------------


def unit_values(layer, level, unit):
    """A unit's weights, and biases, of one level."""
    first = sum(layer.layout.levels[level].out_widths[:unit])
    width = layer.layout.levels[level].out_widths[unit]
    weight = layer.layout.levels[level].unpack(layer.weights[level])[unit]
    return weight.detach().flatten(), layer.biases[level][first : first + width].detach()


@pytest.mark.parametrize("units", [["8-16-8"] * 40, ["8-16-8", "4-32-4:k5"] * 20], ids=len)
def test_initial_values_are_distributed_as_the_loops(units):
    """Each unit's values against what its own ``nn.Conv2d`` starts from: the largest distance of
    the two samples' distribution functions (Kolmogorov and Smirnov's statistic) stays below its
    critical value at 1e-6, as do the bounds that a uniform distribution has."""
    layer = StackedConv2d(units, bias=True)
    for unit in range(2):
        same = range(unit, len(units), 2)
        for level in range(2):
            values = [unit_values(layer, level, u) for u in same]
            convs = [fresh_conv(layer, level, u) for u in same]
            for mine, loops in (
                (torch.cat([w for w, _ in values]), torch.cat([c.weight.flatten() for c in convs])),
                (torch.cat([b for _, b in values]), torch.cat([c.bias for c in convs])),
            ):
                bound = 1 / math.sqrt(convs[0].in_channels * convs[0].kernel_size[0] ** 2)
                assert mine.abs().max() <= bound
                assert mine.abs().max() > 0.9 * bound
                critical = math.sqrt(math.log(2 / 1e-6) / 2 * 2 / len(mine))
                assert distribution_distance(mine, loops.detach()) < critical


def fresh_conv(layer, level, unit):
    c_in, c_out, k = layer.layout.levels[level].blocks[unit]
    return nn.Conv2d(c_in, c_out, k)


def distribution_distance(a, b):
    both = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(x.sort().values, both, right=True) / len(x) for x in (a, b)]
    return (below[0] - below[1]).abs().max().item()


def test_distribution_distance_sees_another_bound():
    """The check above can fail: fan_in of the whole layer in place of a unit's would show."""
    a, b = torch.rand(2000), torch.rand(2000) * 0.8
    assert distribution_distance(a, b) > math.sqrt(math.log(2 / 1e-6) / 2000)


def test_linear_units_start_as_linear_maps_do():
    layer = StackedLinear(["16-64-16", "4-64-4"] * 30)
    for unit, fan_in in ((0, 16), (1, 4)):
        weight, bias = unit_values(layer, 0, unit)
        assert 0.9 / math.sqrt(fan_in) < weight.abs().max() <= 1 / math.sqrt(fan_in)
        assert bias.abs().max() <= 1 / math.sqrt(fan_in)
    linears = [nn.Linear(16, 64) for _ in range(30)]
    mine = torch.cat([unit_values(layer, 0, u)[0] for u in range(0, 60, 2)])
    loops = torch.cat([m.weight.detach().flatten() for m in linears])
    assert distribution_distance(mine, loops) < math.sqrt(math.log(2 / 1e-6) / len(mine))


def test_units_start_independent():
    layer = StackedConv2d("8-16-8", 40)
    rows = torch.stack(
        [w.detach().flatten() for w in layer.layout.levels[0].unpack(layer.weights[0])]
    )
    correlation = torch.corrcoef(rows).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / math.sqrt(rows.shape[1])


def test_a_seed_gives_the_same_layer():
    layers = []
    for _ in range(2):
        torch.manual_seed(7)
        layers.append(StackedConv2d(PAPER_POOL, bias=True))
    assert all(map(torch.equal, layers[0].parameters(), layers[1].parameters()))


def test_reset_parameters_draws_again_and_resets_the_norms():
    layer = lived(StackedConv2d("2-4-2", 3, bias=True))
    before = [p.detach().clone() for p in (*layer.weights, *layer.biases)]
    layer.reset_parameters()
    assert not any(map(torch.equal, before, (*layer.weights, *layer.biases)))
    for norm in layer.norms:
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
        assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all()
        assert norm.num_batches_tracked == 0
