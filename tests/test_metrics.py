"""Counts against hand arithmetic, the trade-off formulas, the comparison."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from torch import nn

from bunit_kernels import StackedConv2d, StackedLinear, backend, backends, metrics
from bunit_kernels.models import create_model


def small_pair():
    arguments = {"in_channels": 1, "image_size": 8, "num_units": 3, "pool": ["2-4-2"]}
    return create_model("bunit_cnn", **arguments), create_model("cnn", **arguments)


def test_parameters_are_the_learnable_ones():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert metrics.count_parameters(model) == 12 + 4 + 8
    model[0].weight.requires_grad_(False)
    assert metrics.count_parameters(model) == 4 + 8


@pytest.mark.parametrize(
    "layer, size, multiply_adds",
    [
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 9, 7), 9 * 3 * 5 * 5 * 4),
        (nn.Linear(6, 7), (6,), 42),
        (nn.Linear(6, 7), (5, 6), 5 * 42),
        # 3x3 units of 1-2-1 and 2-3-2, and a 5x5 unit 1-1-2, stride 2 on the first level.
        (
            StackedConv2d(["1-2-1", "2-3-2", "1-1-2:k5"], stride=2),
            (4, 9, 6),
            5 * 3 * (9 * (2 + 2 + 6 + 6) + 25 * (1 + 2)),
        ),
        (StackedConv2d("2-4-2", 4, norm=None), (8, 5, 5), 25 * 4 * 9 * 16),
        (StackedLinear(["4-8-4", "3-1-2"]), (7,), 32 + 32 + 3 + 2),
        (StackedLinear("4-8-4", 3), (5, 12), 5 * 3 * 64),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_flops_by_hand(every_backend, layer, size, multiply_adds):
    assert metrics.count_flops(layer, size) == 2 * multiply_adds


def test_network_flops_by_hand(every_backend):
    """The network of test_models.test_cnn_sizes_by_hand: 64 pixels, 16 behind the pool."""
    bunit, dense = small_pair()
    stem, mix, head = 64 * 9 * 6, 16 * 9 * 36, 6 * 16 * 10
    stacked, full = 3 * 9 * (8 + 8), 9 * (72 + 72)
    assert metrics.count_flops(bunit, (1, 8, 8)) == 2 * (stem + mix + head + 80 * stacked) == 88_320
    assert metrics.count_flops(dense, (1, 8, 8)) == 2 * (stem + mix + head + 80 * full) == 226_560
    assert metrics.count_flops(create_model("bunit_mlp"), (784,)) == 34_976
    assert metrics.count_flops(create_model("mlp"), (1, 28, 28)) == 1_090_000


def test_counting_leaves_the_model_as_it_was():
    model, _ = small_pair()
    model.train()
    model.stack1.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    metrics.count_flops(model, (1, 8, 8))
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    with pytest.raises(ValueError):
        metrics.count_flops(model, (1, 9, 9))
    assert flags == [module.training for module in model.modules()]


def test_counting_keeps_to_the_models_dtype():
    assert metrics.count_flops(nn.Linear(4, 5).double(), (4,)) == 40
    assert metrics.count_flops(nn.Linear(4, 5).bfloat16(), (4,)) == 40
    assert metrics.count_flops(nn.ReLU(), (4,)) == 0


@pytest.mark.parametrize("size", [(), (1, 3, 8, 8), (0, 8, 8), (3, 8.0, 8), "3x8", None])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="shape of one item without its batch dimension"):
        metrics.count_flops(nn.ReLU(), size)


def test_size_that_the_model_cannot_take():
    with pytest.raises(ValueError, match=r"cannot take an item of shape \(5,\): "):
        metrics.count_flops(nn.Linear(4, 5), (5,))


def test_saving():
    assert metrics.saving(25, 100) == 0.75
    assert metrics.saving(150, 100) == -0.5
    assert metrics.saving(0, 100) == 1
    for compact, dense in ((1, 0), (-1, 5), (1, -5)):
        with pytest.raises(ValueError, match="compact >= 0 and dense > 0"):
            metrics.saving(compact, dense)


both = pytest.mark.parametrize("measure", [metrics.tca, metrics.tsa], ids=["tca", "tsa"])


@both
def test_trade_off_formula(measure):
    """Equation 9 as it is printed: a quotient of two exponentials."""
    for a_b, a_n, c_b, c_n, w1, w2 in (
        (93.25, 92.82, 77.95, 15.69, 1, 1),
        (0.75, 0.5, 300, 30, 2, 0.5),
        (0.7, 0.8, 100, 150, 1, 4),  # more accurate, and costs more
        (50, 0, 10, 0, 4, 1),
    ):
        exact = math.exp(w1 * (c_b - c_n) / c_b) / math.exp(w2 * (a_b - a_n) / a_b)
        assert measure(a_b, a_n, c_b, c_n, w1=w1, w2=w2) == pytest.approx(exact, rel=1e-14)


@both
def test_trade_off_limits(measure):
    assert measure(0.9, 0.9, 100, 100) == 1
    assert measure(0.9, 0.9, 100, 0) == pytest.approx(math.e)
    assert measure(0.9, 0.9, 100, 200) == pytest.approx(1 / math.e)
    assert measure(0.9, 0.0, 100, 100) == pytest.approx(1 / math.e)
    assert measure(0.9, 0.3, 100, 20, w1=0, w2=0) == 1
    assert measure(0.9, 0.3, 100, 20, w1=0) == pytest.approx(math.exp(-2 / 3))
    assert measure(0.9, 0.3, 100, 20, w2=0) == pytest.approx(math.exp(0.8))
    # Percent or shares, FLOPs or MFLOPs: the same.
    assert measure(90, 85, 100, 20) == pytest.approx(measure(0.9, 0.85, 100e6, 20e6), rel=1e-14)
    assert measure(0.9, 0.9, 10**300, 10**300) == 1


@both
@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), 10**400, True, None, "1"])
@pytest.mark.parametrize("which", ["baseline_accuracy", "accuracy", "baseline_", "", "w1", "w2"])
def test_trade_off_refuses(measure, which, bad):
    cost = "flops" if measure is metrics.tca else "parameters"
    name = f"{which}{cost}" if which in ("baseline_", "") else which
    good = {"baseline_accuracy": 0.9, "accuracy": 0.8, f"baseline_{cost}": 9, cost: 5}
    low = "above 0" if name.startswith("baseline") else "of at least 0"
    message = f"^{name} must be a finite number {low}, got {bad!r}$"
    with pytest.raises(ValueError, match=message):
        measure(**good | {name: bad})


@both
def test_trade_off_refuses_what_has_no_score(measure):
    with pytest.raises(ValueError, match="baseline_accuracy must be a finite number above 0"):
        measure(0, 0.5, 10, 5)
    with pytest.raises(ValueError, match=r"baseline_\w+ must be a finite number above 0, got 0"):
        measure(0.9, 0.5, 0, 5)
    with pytest.raises(ValueError, match="^accuracy must be at most 100"):
        measure(90, 101, 10, 5)
    with pytest.raises(ValueError, match="^baseline_accuracy must be at most 100"):
        measure(101, 90, 10, 5)
    with pytest.raises(ValueError, match="too large for a float: accuracy 99 against 0.01"):
        measure(0.01, 99, 10, 5)


def test_speedup():
    assert metrics.speedup(100, 20) == 5
    for arguments, name in (((0, 1), "baseline_flops"), ((1, 0), "flops"), ((1, -2), "flops")):
        with pytest.raises(ValueError, match=f"^{name} must be a finite number above 0"):
            metrics.speedup(*arguments)


def test_compare_without_accuracies():
    result = metrics.compare(*small_pair(), (1, 8, 8))
    assert (result.parameters, result.dense_parameters) == (2308, 4036)
    assert (result.flops, result.dense_flops) == (88_320, 226_560)
    assert result.parameters_saving == 1 - 2308 / 4036
    assert result.flops_saving == 1 - 88_320 / 226_560
    assert result.accuracy_difference is result.inference is result.time_conversion is None
    assert result.scores == () and result.speedup == 226_560 / 88_320
    assert "TCA" not in str(result) and "accuracy" not in str(result)
    with pytest.raises(AttributeError):
        result.flops = 1


def test_compare_with_accuracies():
    result = metrics.compare(*small_pair(), (1, 8, 8), accuracy=0.9, dense_accuracy=0.95)
    assert result.accuracy_difference == pytest.approx(-0.05)
    assert [(score.w1, score.w2) for score in result.scores] == [(1, 1), (1, 4), (4, 1)]
    for score in result.scores:
        weights = {"w1": score.w1, "w2": score.w2}
        assert score.tca == metrics.tca(0.95, 0.9, 226_560, 88_320, **weights)
        assert score.tsa == metrics.tsa(0.95, 0.9, 4036, 2308, **weights)
    lines = dict(re.split(r"  +", line)[:2] for line in str(result).splitlines()[1:])
    first, _, last = result.scores
    assert lines["TCA (w1 1, w2 1)"] == f"{first.tca:.3f}"
    assert lines["TSA (w1 4, w2 1)"] == f"{last.tsa:.3f}" and "TCA (w1 1, w2 4)" in lines
    assert lines["theoretical speedup"] == "2.57x"
    table = result.table(("small", "large"))
    for text in ("small", "large", "90.00%", "-5.00 points", "2,308", "226,560", "42.81%"):
        assert text in table
    assert str(result) == result.table()


def test_a_comparison_without_scores():
    """A network at whose end stands no accuracy must not stop a program that compares it."""
    sizes = {"parameters": 1, "dense_parameters": 2, "flops": 3, "dense_flops": 4}
    assert metrics.Comparison(**sizes, accuracy=0.5, dense_accuracy=0.0).scores == ()
    assert metrics.Comparison(**sizes, accuracy=1.0, dense_accuracy=1e-4).scores == ()
    assert metrics.Comparison(**sizes | {"flops": 0}).speedup is None


def test_compare_refuses_before_it_measures():
    pair = small_pair()
    with pytest.raises(ValueError, match="come together"):
        metrics.compare(*pair, (1, 8, 8), accuracy=0.9)
    for accuracy, dense, message in (
        (90.0, 95.0, r"^accuracy must be a share, in \[0, 1\], got 90.0"),
        (0.9, float("nan"), r"^dense_accuracy must be a share, in \[0, 1\], got nan"),
        (0.9, 0.0, "^dense_accuracy must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.compare(*pair, (1, 8, 8), accuracy=accuracy, dense_accuracy=dense, time=True)
    with pytest.raises(ValueError, match="rounds"):
        metrics.compare(*pair, (1, 8, 8), time=True, rounds=0)
    with pytest.raises(ValueError, match="batch_size"):
        metrics.compare(*pair, (1, 8, 8), time=True, batch_size=0)


def test_compare_times_and_leaves_the_models_alone():
    pair = small_pair()
    before = [copy.deepcopy(model.state_dict()) for model in pair]
    result = metrics.compare(*pair, (1, 8, 8), time=True, batch_size=4, rounds=3)
    for times in (result.training_step, result.inference):
        assert times.compact > 0 and times.dense > 0
        assert times.saving == pytest.approx(1 - times.compact / times.dense)
    assert result.time_conversion == pytest.approx(result.inference.saving / result.flops_saving)
    assert result.batch_size == 4
    assert "ms a training step" in str(result) and "time conversion" in str(result)
    for model, state in zip(pair, before, strict=True):
        assert model.training
        for a, b in zip(state.values(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_medians_are_interleaved_and_skip_the_warm_up():
    calls = []
    medians = metrics.interleaved_medians(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=4, warmup=2
    )
    assert calls == ["a", "b"] * 6
    assert set(medians) == {"a", "b"} and all(value >= 0 for value in medians.values())


def test_all_backends_count_alike():
    model, _ = small_pair()
    counts = set()
    for name in backends.available("cpu"):
        with backend(name):
            counts.add(metrics.count_flops(model, (1, 8, 8)))
    assert len(counts) == 1
