"""Norms that are not the layer's first ones: into the loop over units, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from module_cases import run_units
from tolerance import assert_near, tolerance
from torch import nn

from bunit_kernels import StackedConv2d, StackedLinear, fuse
from bunit_kernels.models import load_weights
from bunit_kernels.nn.sync_norm import CpuSyncBatchNorm, convert_sync_norm

NEAR = tolerance(torch.float64, terms=300, roundings=30)


def bare_bias(channels):
    norm = nn.BatchNorm2d(channels)
    norm.bias = None
    return norm


def uncounted(channels):
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


def frozen(channels):
    norm = nn.BatchNorm2d(channels)
    norm.track_running_stats = False  # what is there stays as it is
    return norm


NORMS = {
    "plain": nn.BatchNorm2d,
    "without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "without affine": lambda c: nn.BatchNorm2d(c, affine=False),
    "without either": lambda c: nn.BatchNorm2d(c, affine=False, track_running_stats=False),
    "without bias": bare_bias,
    "without count": uncounted,
    "statistics not moved": frozen,
    "average of all batches": lambda c: nn.BatchNorm2d(c, momentum=None),
    "instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "instance, plain": nn.InstanceNorm2d,
    "instance with statistics": lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
}


def build(name: str, units=("1-2-1", "3-2-2", "2-1-3")) -> StackedConv2d:
    layer = StackedConv2d(list(units))
    layer.norms = nn.ModuleList(NORMS[name](norm.num_features) for norm in layer.norms)
    with torch.no_grad():
        for value in (*layer.norms.parameters(), *layer.norms.buffers()):
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return layer.double()


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_loop_has_the_same_norms(name, training, every_backend):
    layer = build(name).train(training)
    units = layer.to_units()
    x = torch.randn(4, 6, 5, 7).double()
    for _ in range(2):  # in training the second meets moved statistics
        assert_near(layer(x), run_units(units, x), NEAR)
    back = StackedConv2d.from_units(units)
    assert back.training is training
    for mine, theirs in zip(back.norms, layer.norms, strict=True):
        assert str(mine) == str(theirs)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
    for key, value in back.state_dict().items():
        assert_near(value.double(), layer.state_dict()[key].double(), NEAR)
    assert_near(back.eval()(x), layer.eval()(x), NEAR)


# PyTorch's own norms refuse a state without versions where they do not count.
@pytest.mark.parametrize("name", sorted(NORMS.keys() - {"without count"}))
def test_a_loops_state_loads_into_the_same_norms(name):
    layer, other, third = build(name), build(name), build(name)
    x = torch.randn(4, 6, 5, 7).double()
    other.load_state_dict(layer.to_units().state_dict())
    load_weights(third, layer.to_units().state_dict())
    for loaded in (other, third):
        assert torch.equal(loaded.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("name", NORMS)
def test_folding_keeps_the_output(name):
    layer = build(name).eval()
    x = torch.randn(4, 6, 5, 7).double()
    assert_near(fuse(layer)(x), layer(x), NEAR)


def test_frozen_statistics_stay():
    layer = build("statistics not moved")
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(4, 6, 5, 7).double())
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_synchronised_norms_stay_so():
    x = torch.randn(4, 6, 5, 7).double()
    for convert, kind in (
        (nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm),
        (convert_sync_norm, CpuSyncBatchNorm),
    ):
        layer = convert(build("plain")).eval()
        units = layer.to_units()
        assert all(type(unit[1]) is kind for unit in units)
        back = StackedConv2d.from_units(units)
        assert all(type(norm) is kind for norm in back.norms)
        assert_near(back(x), layer(x), NEAR)


def test_no_norm_after_some_levels():
    layer = build("plain").eval()
    layer.norms[0] = nn.Identity().eval()
    x = torch.randn(4, 6, 5, 7).double()
    units = layer.to_units()
    assert_near(run_units(units, x), layer(x), NEAR)
    other = copy.deepcopy(layer)
    other.load_state_dict(units.state_dict())
    assert torch.equal(other(x), layer(x))


def test_linear_norms():
    layer = StackedLinear("2-3-2", 3, norm="batch").double()
    layer.norms[0] = nn.BatchNorm1d(9, affine=False, momentum=0.3).double()
    layer.norms[1] = nn.SyncBatchNorm(6).double().eval()
    layer.eval()
    x = torch.randn(5, 6).double()
    units = layer.to_units()
    assert_near(run_units(units, x), layer(x), NEAR)
    back = StackedLinear.from_units(units)
    assert back.norms[0].momentum == 0.3 and type(back.norms[1]) is nn.SyncBatchNorm
    assert_near(back(x), layer(x), NEAR)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def test_other_norms_are_refused_by_name():
    for norm in (nn.GroupNorm(1, 6), OwnNorm(6), nn.LayerNorm(4), nn.Conv2d(6, 6, 1)):
        layer = build("plain")
        layer.norms[1] = norm
        with pytest.raises(
            ValueError, match=rf"norms\[1\] is {type(norm).__name__}\(.*BatchNorm2d"
        ):
            layer.to_units()
    linear = StackedLinear("2-3-2", 3, norm="batch")
    linear.norms[0] = nn.InstanceNorm1d(9)  # takes rows for channels
    with pytest.raises(
        ValueError, match=r"norms\[0\] is InstanceNorm1d.*expected one of BatchNorm1d"
    ):
        linear.to_units()
    unit = nn.Sequential(nn.Conv2d(2, 6, 3), OwnNorm(6))
    with pytest.raises(ValueError, match="unit 0 holds OwnNorm"):
        StackedConv2d.from_units([unit])


def test_batches_are_not_counted_where_norms_do_not(every_backend):
    """As BatchNorm2d: the statistics move by the momentum."""
    layer, norm = StackedConv2d("2-3", 2), nn.BatchNorm2d(6)
    layer.norms[0].num_batches_tracked = norm.num_batches_tracked = None
    x = torch.randn(4, 4, 5, 5)
    y = layer(x)
    z = nn.functional.conv2d(x, layer.weights[0], padding=1, groups=2)
    assert_near(y, norm(z).relu(), tolerance(torch.float32, terms=300, roundings=30))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(layer.norms[0], name), getattr(norm, name))
    assert "norms.0.num_batches_tracked" not in layer.state_dict()


def test_synchronised_norms_need_not_count():
    norm = CpuSyncBatchNorm(3)
    plain = nn.BatchNorm2d(3)
    norm.num_batches_tracked = plain.num_batches_tracked = None
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(norm(x), plain(x))
    norm._update(torch.ones(3), torch.full((3,), 2.0))
    plain.running_mean.lerp_(torch.ones(3), 0.1)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    norm.momentum = None
    before = norm.running_mean.clone()
    norm._update(torch.zeros(3), torch.ones(3))
    assert torch.equal(norm.running_mean, before)
