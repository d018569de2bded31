"""The paper's way of counting: by hand, and against what it prints of networks in tables I to III.

Its FLOPs are 2 x (multiply-adds, + 1 a value where a convolution has a bias, + 2 a value that a
BatchNorm gives).
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pytest
import torch
from torch import nn

from bunit_kernels import PAPER_POOL, StackedConv2d, StackedLinear, fuse, metrics

POOL = "ABCDEF"


def paper_flops(model, size):
    return metrics.count_flops(model, size, convention="paper")


def printed(count, unit):
    """To two places, a half upwards: No. 10 has 105,985 parameters, printed as 105.99."""
    return str((Decimal(count) / unit).quantize(Decimal("0.01"), ROUND_HALF_UP))


class Side(nn.Module):
    """Units side by side, each on its share of the channels: the loop of a stacked layer."""

    def __init__(self, units, widths):
        super().__init__()
        self.units, self.widths = nn.ModuleList(units), widths

    def forward(self, x):
        parts = x.split(self.widths, dim=1)
        return torch.cat([unit(part) for unit, part in zip(self.units, parts, strict=True)], dim=1)


def conv_norm(c_in, c_out, kernel_size=3, padding=1, bias=False):
    conv = nn.Conv2d(c_in, c_out, kernel_size, padding=padding, bias=bias)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU()]


def loop(units):
    """3x3 units of ``units`` as plain modules."""
    chains = [
        nn.Sequential(*conv_norm(u.widths[0], u.widths[1]), *conv_norm(u.widths[1], u.widths[2]))
        for u in units
    ]
    return Side(chains, [u.widths[0] for u in units])


both_forms = pytest.mark.parametrize("form", [loop, StackedConv2d], ids=["loop", "stacked"])

#: Table II: units of kinds A to F in the two stacked layers, MFLOPs and thousands of parameters.
#: No. 2's FLOPs are printed as 9.60 M; the rule that gives the nine others gives 9.96 M.
TABLE_II = {
    "No.1": ([3, 3, 2, 3, 5, 4], [4, 7, 2, 0, 4, 3], "9.24", "90.77"),
    "No.2": ([5, 5, 2, 2, 3, 3], [3, 4, 1, 4, 4, 4], "9.96", "89.98"),
    "No.3": ([5, 3, 1, 3, 4, 4], [3, 4, 2, 3, 5, 3], "9.33", "91.11"),
    "No.4": ([3, 4, 5, 2, 2, 4], [3, 1, 6, 3, 3, 4], "10.92", "106.64"),
    "No.5": ([5, 4, 1, 2, 3, 5], [1, 6, 2, 6, 2, 3], "9.53", "104.05"),
    "No.6": ([4, 6, 3, 3, 2, 2], [3, 3, 3, 3, 6, 2], "10.08", "95.39"),
    "No.7": ([0, 4, 3, 3, 3, 7], [3, 3, 2, 4, 5, 3], "11.00", "93.29"),
    "No.8": ([2, 2, 2, 3, 6, 5], [3, 5, 4, 1, 5, 2], "9.30", "98.26"),
    "No.9": ([3, 2, 1, 3, 4, 7], [6, 4, 5, 1, 1, 3], "9.06", "100.00"),
    "No.10": ([2, 6, 5, 2, 3, 2], [1, 2, 5, 3, 3, 6], "11.70", "105.99"),
}


def toy_network(first, second, form):
    """Table II's network: normal convolution and stacked layer, twice, then a linear map."""
    stacks = [
        [unit for unit, count in zip(PAPER_POOL, counts, strict=True) for _ in range(count)]
        for counts in (first, second)
    ]
    ins = [sum(unit.in_channels for unit in stack) for stack in stacks]
    outs = [sum(unit.out_channels for unit in stack) for stack in stacks]
    return nn.Sequential(
        *conv_norm(3, ins[0]), form(stacks[0]), nn.MaxPool2d(2),
        *conv_norm(outs[0], ins[1]), form(stacks[1]),
        nn.Flatten(), nn.Linear(outs[1] * 16 * 16, 10),
    )  # fmt: skip


@both_forms
@pytest.mark.parametrize("name", TABLE_II)
def test_table_2(name, form):
    first, second, mflops, thousands = TABLE_II[name]
    model = toy_network(first, second, form)
    assert printed(metrics.count_parameters(model), 1000) == thousands
    assert printed(paper_flops(model, (3, 32, 32)), 10**6) == mflops


def loop_of_5x5(widths, hidden):
    """5x5 units 1-h-1 with bias, padded by 1, a pool between their levels."""
    units = [
        nn.Sequential(
            *conv_norm(1, h, 5, 1, bias=True), nn.MaxPool2d(5, 2), *conv_norm(h, 1, 5, 1, bias=True)
        )
        for h in hidden
    ]
    return [Side(units, widths)]


def stacked_5x5(widths, hidden):
    """The same as two stacked layers of one level, with the pool between them."""
    arguments = {"kernel_size": 5, "padding": 1, "bias": True}
    return [
        StackedConv2d([f"1-{h}" for h in hidden], **arguments),
        nn.MaxPool2d(5, 2),
        StackedConv2d([f"{h}-1" for h in hidden], **arguments),
    ]


@pytest.mark.parametrize("form", [loop_of_5x5, stacked_5x5], ids=["loop", "stacked"])
@pytest.mark.parametrize(
    "hidden, thousands, mflops",
    [(2, "1.41", "0.72"), (3, "1.83", "0.95"), (4, "2.26", "1.19")],
    ids=["U1", "U2", "U3"],
)
def test_table_1(hidden, thousands, mflops, form):
    units = form([1] * 8, [hidden] * 8)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5), *units, nn.MaxPool2d(5, 2), nn.Flatten(), nn.Linear(32, 10)
    )
    assert printed(metrics.count_parameters(model), 1000) == thousands
    assert printed(paper_flops(model, (1, 28, 28)), 10**6) == mflops


def test_table_3_dense():
    mlp = [nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 10)]
    model = nn.Sequential(*mlp)
    assert printed(metrics.count_parameters(model), 10**6) == "0.55"
    assert paper_flops(model, (784,)) == 2 * 545_000 == metrics.count_flops(model, (784,))


@pytest.mark.parametrize(
    "layer, size, more",
    [
        # A 9x7 image padded by 1 at stride 2: 5x4 values a channel.
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 9, 7), 2 * 5 * 20),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), (3, 9, 7), 0),
        (nn.ConvTranspose2d(3, 5, 2, stride=2), (3, 4, 4), 2 * 5 * 64),
        (nn.Linear(6, 7), (6,), 0),
        (nn.BatchNorm1d(6), (6,), 4 * 6),
        (nn.BatchNorm2d(3, affine=False), (3, 4, 5), 4 * 60),
        # First level at stride 2, 5x3 values: 2 + 3 + 1 hidden channels, 1 + 2 + 2 of the output.
        (StackedConv2d(["1-2-1", "2-3-2", "1-1-2:k5"], stride=2), (4, 9, 6), 4 * 15 * (6 + 5)),
        (StackedConv2d("2-4-2", 4, norm=None), (8, 5, 5), 2 * 25 * (16 + 8)),
        (StackedConv2d("2-4-2", 4, norm=None, bias=False), (8, 5, 5), 0),
        (StackedConv2d("2-4-2", 4, bias=True), (8, 5, 5), 6 * 25 * (16 + 8)),
        # Without padding the levels give 3x4 and 1x2 values of 5x6.
        (StackedConv2d("2-4-2", padding=0), (2, 5, 6), 4 * (4 * 12 + 2 * 2)),
        (StackedLinear("4-8-4", 3), (12,), 0),
        (StackedLinear(["4-8-4", "3-1-2"], norm="batch"), (5, 7), 4 * 5 * (8 + 1 + 4 + 2)),
    ],
)
def test_by_hand(every_backend, layer, size, more):
    assert paper_flops(layer, size) == metrics.count_flops(layer, size) + more
    assert (
        metrics.count_flops(layer, size, convention="multiply_adds")
        == paper_flops(layer, size) - more
    )


def test_norms_that_are_called_one_by_one_count_once():
    """A hook makes a stacked layer call its norms as modules."""
    layer = StackedConv2d("2-4-2", 4)
    layer.norms[0].register_forward_hook(lambda *_: None)
    assert paper_flops(layer, (8, 5, 5)) == paper_flops(StackedConv2d("2-4-2", 4), (8, 5, 5))


def test_fused_layers_count_the_bias_that_the_norm_became():
    model = nn.Sequential(*conv_norm(3, 8), StackedConv2d("2-4-2", 4)).eval()
    multiply_adds = metrics.count_flops(model, (3, 5, 5))
    values = 25 * (8 + 16 + 8)
    assert paper_flops(model, (3, 5, 5)) == multiply_adds + 4 * values
    assert paper_flops(fuse(model), (3, 5, 5)) == multiply_adds + 2 * values
    linear = StackedLinear("4-8-4", 3, norm="batch").eval()
    assert paper_flops(fuse(linear), (12,)) == metrics.count_flops(linear, (12,))


class Twice(nn.Module):
    """One module called twice, by keyword, and on a batch of its own."""

    def __init__(self):
        super().__init__()
        self.stack = StackedConv2d("2-4-2", 2)

    def forward(self, x):
        x = self.stack(x, residual=x)
        return self.stack(x=torch.cat([x, x]))


def test_every_call_and_the_whole_batch_count():
    model = Twice()
    more = paper_flops(model, (4, 3, 3)) - metrics.count_flops(model, (4, 3, 3))
    assert more == 4 * 9 * 12 * (1 + 2)


def test_layers_and_compare_take_the_convention():
    toy = toy_network(*TABLE_II["No.1"][:2], StackedConv2d)
    table = metrics.layers(toy, (3, 32, 32), convention="paper")
    assert table.flops == paper_flops(toy, (3, 32, 32)) and table.convention == "paper"
    assert all(row.name != "other" for row in table.rows)
    norm, stacked = table.rows[1:3]
    first = toy[3].layout
    assert (norm.kind, norm.flops) == ("batch norm", 4 * 1024 * first.in_channels)
    values = 1024 * sum(level.out_channels for level in first.levels)
    plain = metrics.layers(toy, (3, 32, 32)).rows[2]
    assert stacked.flops == plain.flops + 4 * values
    assert "FLOPs (paper)" in str(table) and "(paper)" not in str(metrics.layers(toy, (3, 32, 32)))
    other = toy_network(*TABLE_II["No.7"][:2], StackedConv2d)
    result = metrics.compare(toy, other, (3, 32, 32), convention="paper")
    assert (result.flops, result.dense_flops) == (table.flops, paper_flops(other, (3, 32, 32)))
    assert result.convention == "paper" and "FLOPs (paper) an item" in str(result)
    assert metrics.compare(toy, other, (3, 32, 32)).convention == "multiply_adds"


def test_counting_leaves_no_hook():
    model = toy_network(*TABLE_II["No.1"][:2], StackedConv2d)
    with pytest.raises(ValueError, match="cannot take an item of shape"):
        paper_flops(model, (3, 8, 8))
    paper_flops(model, (3, 32, 32))
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "count",
    [
        lambda **more: metrics.count_flops(nn.ReLU(), (4,), **more),
        lambda **more: metrics.layers(nn.ReLU(), (4,), **more),
        lambda **more: metrics.compare(nn.ReLU(), nn.ReLU(), (4,), **more),
    ],
    ids=["count_flops", "layers", "compare"],
)
@pytest.mark.parametrize("convention", ["thop", None, "Paper"])
def test_unknown_conventions_are_refused(count, convention):
    message = f"convention must be 'multiply_adds' or 'paper', got {convention!r}"
    with pytest.raises(ValueError, match=message):
        count(convention=convention)
