"""The table of a network's layers: rows by hand arithmetic, totals, order, times."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from bunit_kernels import StackedConv2d, StackedLinear, fuse, metrics
from bunit_kernels.models import create_model


def assert_totals(table, model, size):
    assert table.parameters == metrics.count_parameters(model)
    assert table.flops == metrics.count_flops(model, size)
    assert sum(row.bytes for row in table.rows) == table.bytes


def small_net():
    arguments = {"in_channels": 1, "image_size": 8, "num_units": 3, "pool": ["2-4-2"]}
    return create_model("bunit_cnn", **arguments)


def test_rows_by_hand():
    """A 3x3 stem of 6 channels at 8x8, stacked, pool, 3x3 at 4x4, stacked, fully connected."""
    model = small_net()
    table = metrics.layers(model, (1, 8, 8))
    rows = {row.name: row for row in table.rows}
    assert list(rows) == [
        "normal1.0",
        "normal1.1",
        "stack1",
        "normal2.0",
        "normal2.1",
        "stack2",
        "head",
    ]
    kinds = ["conv 3x3", "batch norm", "3 x 2-4-2 conv", "conv 3x3", "batch norm",
             "3 x 2-4-2 conv", "linear"]  # fmt: skip
    assert [row.kind for row in table.rows] == kinds
    stack, head = rows["stack1"], rows["head"]
    weights, norms = 3 * 9 * (8 + 8), 2 * 3 * (4 + 2)
    assert (stack.calls, stack.output, stack.parameters) == (1, (6, 8, 8), weights + norms)
    assert stack.flops == 2 * 64 * weights
    assert stack.bytes == 4 * (6 * 64 + 6 * 64 + weights + norms)
    assert (head.output, head.parameters, head.flops) == ((10,), 970, 2 * 960)
    assert head.bytes == 4 * (96 + 10 + 970)
    assert (rows["normal1.1"].parameters, rows["normal1.1"].flops) == (12, 0)
    assert_totals(table, model, (1, 8, 8))


@pytest.mark.parametrize(
    "name, size, arguments",
    [
        ("bunit_cnn", (3, 32, 32), {}),
        ("bunit_mlp", (1, 28, 28), {}),
        ("bunit_lenet", (1, 28, 28), {}),
        ("bunit_resnet20", (3, 32, 32), {}),
        ("resnet18", (3, 32, 32), {"image_size": 32}),
        ("bunit_vgg16_bn", (3, 32, 32), {"image_size": 32}),
        ("bunit_mobilenet_v2", (3, 32, 32), {"image_size": 32}),
    ],
)
def test_totals_of_networks(name, size, arguments):
    """Counted without memory for the weights, as the table of the models is."""
    with torch.device("meta"):
        model = create_model(name, **arguments)
    table = metrics.layers(model, size)
    assert_totals(table, model, size)
    assert all(row.name != "other" for row in table.rows), "every parameter lies in a layer"


def test_backends_and_fused_networks_count_alike(every_backend):
    table = metrics.layers(small_net(), (1, 8, 8))
    assert table.flops == 88_320
    fused = fuse(small_net().eval())
    folded = metrics.layers(fused, (1, 8, 8))
    assert_totals(folded, fused, (1, 8, 8))
    assert folded.flops == 88_320
    assert [row.name for row in folded.rows] == [
        "normal1.0",
        "stack1",
        "normal2.0",
        "stack2",
        "head",
    ]


class Twisted(nn.Module):
    """Runs its layers in another order than it names them, one of them twice; holds a parameter,
    multiplies by hand, and has a head that inference leaves out."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2, bias=False)
        self.unused = nn.Linear(4, 7)
        self.shared = nn.Linear(4, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(4, 4))
        self.again = self.shared
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.again(self.relu(self.shared(x)))
        return self.last(x @ self.scale)


def test_order_calls_and_the_rest():
    model = Twisted()
    table = metrics.layers(model, (4,))
    shared, last, unused, other = table.rows
    assert [row.name for row in table.rows] == ["shared", "last", "unused", "other"]
    assert (shared.calls, shared.parameters, shared.flops) == (2, 16, 2 * 2 * 16)
    assert shared.bytes == 2 * 4 * (4 + 4 + 16)
    assert (last.calls, last.flops, last.output) == (1, 16, (2,))
    assert (unused.calls, unused.parameters, unused.flops, unused.output) == (0, 35, 0, None)
    assert (other.parameters, other.flops, other.bytes) == (16, 32, 0)
    assert_totals(table, model, (4,))


def test_shared_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    table = metrics.layers(model, (4,))
    assert [row.parameters for row in table.rows] == [16, 4, 0]
    assert [row.bytes for row in table.rows] == [4 * 24, 4 * 28, 4 * (4 + 3 + 15)]
    assert_totals(table, model, (4,))


def test_bytes_follow_the_dtype():
    single = metrics.layers(nn.Linear(4, 5), (4,))
    half = metrics.layers(nn.Linear(4, 5).bfloat16(), (4,))
    assert single.bytes == 4 * (4 + 5 + 25) == 2 * half.bytes


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stack = StackedConv2d("2-4-2", 2)

    def forward(self, x):
        return self.stack(x, residual=x)


def test_an_input_given_twice_is_read_once():
    row = metrics.layers(Residual(), (4, 5, 5)).rows[0]
    assert row.bytes == 4 * (2 * 100 + row.parameters)


@pytest.mark.parametrize(
    "module, size, kind",
    [
        (nn.Conv2d(4, 8, (3, 5)), (4, 8, 8), "conv 3x5"),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8), "depthwise conv 3x3"),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 8, 8), "conv 3x3 in 2 groups"),
        (nn.Conv1d(4, 8, 3), (4, 8), "conv 3"),
        (nn.ConvTranspose2d(4, 8, 2), (4, 8, 8), "transposed conv 2x2"),
        (nn.GroupNorm(2, 4), (4, 8, 8), "GroupNorm"),
        (StackedLinear("4-8-4", 3), (12,), "3 x 4-8-4 linear"),
        (StackedConv2d(["1-2-1", "2-1-2:k5"]), (3, 8, 8), "1 x 1-2-1, 1 x 2-1-2:k5 conv"),
        (StackedConv2d(["1-2-1", "2-1-2", "3-1-1"]), (6, 8, 8), "3 units of 3 kinds, conv"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_kinds(module, size, kind):
    (row,) = metrics.layers(nn.Sequential(module), size).rows
    assert (row.name, row.kind) == ("0", kind)


def test_a_parametrized_layer_is_one_layer():
    model = nn.Sequential(weight_norm(nn.Linear(4, 3)))
    (row,) = metrics.layers(model, (4,)).rows
    assert (row.name, row.parameters, row.flops) == ("0", 12 + 3 + 3, 24)


def test_a_single_layer_is_a_network():
    (row,) = metrics.layers(nn.Linear(4, 5), (4,)).rows
    assert (row.name, row.kind, row.flops) == ("", "linear", 40)
    assert metrics.layers(nn.ReLU(), (4,)).rows == ()


def test_times():
    model = Twisted()
    table = metrics.layers(model, (4,), time=True, batch_size=3, rounds=4)
    seconds = {row.name: row.seconds for row in table.rows}
    assert seconds["shared"] > 0 and seconds["last"] > 0 and seconds["unused"] == 0
    assert seconds["other"] > 0, "what runs between the layers takes time too"
    assert table.seconds == math.fsum(seconds.values()) and table.batch_size == 3
    assert_totals(table, model, (4,))
    assert metrics.layers(model, (4,)).seconds is None


def test_the_model_is_left_as_it_was():
    model = small_net().train()
    model.stack1.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    metrics.layers(model, (1, 8, 8), time=True, batch_size=2, rounds=2)
    with pytest.raises(ValueError, match="cannot take an item of shape"):
        metrics.layers(model, (1, 9, 9))
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_table_and_dicts():
    table = metrics.layers(Twisted(), (4,))
    lines = str(table).splitlines()
    assert lines[0].split() == "layer kind calls output parameters FLOPs bytes".split()
    assert lines[1].split() == ["shared", "linear", "2", "4", "16", "64", "192"]
    assert lines[-1].split() == ["total", "75", "112", f"{table.bytes}"]
    assert len(lines) == 6 and table.table() == str(table)
    first = table.as_dicts()[0]
    assert first["name"] == "shared" and first["output"] == (4,) and first["seconds"] is None
    timed = metrics.layers(Twisted(), (4,), time=True, batch_size=2, rounds=1)
    assert "ms a batch" in str(timed)


def test_refuses():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        metrics.layers(Twisted(), (4,), time=True, batch_size=0)
    with pytest.raises(ValueError, match="rounds must be at least 1, got -1"):
        metrics.layers(Twisted(), (4,), time=True, rounds=-1)
    with pytest.raises(ValueError, match="shape of one item"):
        metrics.layers(Twisted(), (2, 2, 2, 2))
    with pytest.raises(ValueError, match="meta device cannot be timed"):
        metrics.layers(Twisted().to("meta"), (4,), time=True)
