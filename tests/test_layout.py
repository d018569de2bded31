"""Layouts: packing, channel counts, geometry."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from reference_cases import LEVEL_CONVS, LEVEL_LINEARS, UNIT_CONVS, UNIT_LINEARS, layout_of
from torch import nn

from bunit_kernels import UnitSpec
from bunit_kernels.layout import ConvGeometry, Level, StackLayout, UnitLevel, resolve_units

CONVS = LEVEL_CONVS + UNIT_CONVS
CASES = CONVS + LEVEL_LINEARS + UNIT_LINEARS


def stack(*units, kernel_size=3):
    return StackLayout(resolve_units(units), kernel_size)


def test_one_spec_many_times():
    assert resolve_units("2-4-2", 3) == (UnitSpec("2-4-2"),) * 3
    assert resolve_units(UnitSpec("2-4-2")) == (UnitSpec("2-4-2"),)


def test_one_spec_a_unit():
    specs = resolve_units(["1-2-1", UnitSpec("3-2-1:k5"), (2, 1, 2)])
    assert [str(s) for s in specs] == ["1-2-1", "3-2-1:k5", "2-1-2"]
    assert resolve_units(["1-2-1", "2-1-2"], 2) == resolve_units(("1-2-1", "2-1-2"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pack_and_unpack_are_inverse(case):
    for level in layout_of(case).levels:
        weights = [torch.randn(unit.weight_shape) for unit in level.units]
        packed = level.pack(weights)
        assert packed.shape == level.weight_shape
        assert packed.numel() == sum(w.numel() for w in weights)
        assert all(map(torch.equal, level.unpack(packed), weights))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_are_the_sums_over_units(case):
    layout = layout_of(case)
    assert layout.in_channels == sum(u.widths[0] for u in layout.units)
    assert layout.out_channels == sum(u.widths[-1] for u in layout.units)
    for i, level in enumerate(layout.levels):
        assert level.in_channels == sum(u.widths[i] for u in layout.units)
        assert level.out_channels == sum(u.widths[i + 1] for u in layout.units)


@pytest.mark.parametrize(("width", "count", "k"), [((2, 4), 3, 3), ((16, 8), 1, 5), ((1, 1), 7, 1)])
def test_a_uniform_weight_is_a_grouped_convolutions(width, count, k):
    level = stack(*[UnitSpec(width)] * count, kernel_size=k).levels[0]
    conv = nn.Conv2d(count * width[0], count * width[1], k, groups=count)
    assert level.uniform
    assert level.weight_shape == tuple(conv.weight.shape)
    per_unit = conv.weight.chunk(count)
    assert all(map(torch.equal, level.unpack(conv.weight), per_unit))


def test_a_uniform_weight_unpacks_to_views():
    level = stack("2-4", "2-4").levels[0]
    weight = torch.zeros(level.weight_shape)
    level.unpack(weight)[1].fill_(1)
    assert weight[:4].eq(0).all() and weight[4:].eq(1).all()


def test_hybrid_weights_keep_the_number_of_dimensions():
    assert stack("1-2", "3-2").levels[0].weight_shape == (18 + 54, 1, 1, 1)
    assert stack("1-2", "3-2", kernel_size=None).levels[0].weight_shape == (2 + 6, 1)
    assert stack("1-2", "1-2:k5").levels[0].weight_shape == (18 + 50, 1, 1, 1)


def test_units_alike_but_for_how_they_are_written_are_uniform():
    assert stack("2-4", "2-4:k3").levels[0].uniform


@pytest.mark.parametrize("case", CASES, ids=str)
def test_spread_puts_each_value_over_its_channels_weights(case):
    for level in layout_of(case).levels:
        values = torch.randn(level.out_channels)
        spread = level.spread(values).expand(level.weight_shape)
        for block, part in zip(level.unpack(spread), values.split(level.out_widths), strict=True):
            assert torch.equal(block, part.view(-1, *[1] * (block.dim() - 1)).expand_as(block))


def test_kinds():
    level = stack("1-2", "3-2", "1-2", "1-2:k5").levels[0]
    assert level.kinds() == {(1, 2, 3): [0, 2], (3, 2, 3): [1], (1, 2, 5): [3]}


def test_describe():
    assert stack(*["2-4-2"] * 64).describe() == "64 x 2-4-2"
    mixed = stack("1-2-1", "3-2-1:k5", "1-2-1")
    assert mixed.describe() == "2 x 1-2-1, 1 x 3-2-1:k5"


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_sizes_are_those_of_the_convolutions(case):
    geometry = case.geometry
    size = case.size[1:]
    assert geometry.level_sizes(*size)[0] == size
    for level, units in enumerate(geometry.layout.levels):
        stride = case.stride if level == 0 else 1
        k = units.units[-1].kernel
        pad = case.dilation * (k - 1) // 2 if case.padding == "same" else case.padding
        conv = nn.Conv2d(1, 1, k, stride, pad, case.dilation, device="meta")
        size = tuple(conv(torch.empty(1, 1, *size, device="meta")).shape[2:])
        assert geometry.level_sizes(*case.size[1:])[level + 1] == size
    assert geometry.output_size(*case.size[1:]) == size
    geometry.check_size(*case.size[1:])


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("k", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 3, 2), (1, 4, 3)])
def test_same_padding_gives_the_size_over_the_stride_rounded_up(size, k, stride, dilation):
    geometry = ConvGeometry(stack("1-2-1", kernel_size=k), stride, "same", dilation)
    assert geometry.output_size(size, size) == (-(-size // stride),) * 2


def test_stride_sits_on_the_first_level_alone():
    geometry = ConvGeometry(stack("1-2-1-2"), stride=2)
    assert [level.stride for level in geometry.levels] == [2, 1, 1]
    assert [level.layout.units[0].widths for level in geometry.levels] == [(1, 2), (2, 1), (1, 2)]


def test_rows_describe_runs_of_equal_neighbours():
    geometry = ConvGeometry(stack("1-2-1", "1-2-1", "3-2-1:k5", "1-2-1"), dilation=2)
    assert geometry.rows == (2, 3, 2, 1, 2, 1, 1, 5, 4, 3, 2, 1, 1, 3, 2, 1, 2, 1)
    assert stack("1-2", "1-2", "3-2", kernel_size=None).linear_rows == (2, 1, 2, 1, 3, 2)


def test_even_kernels_need_an_int_of_padding():
    with pytest.raises(ValueError, match='padding="same" needs odd kernel sizes, got 4'):
        ConvGeometry(stack("1-2-1", "1-2-1:k4"))
    assert ConvGeometry(stack("1-2-1", kernel_size=4), padding=2).output_size(5, 5) == (7, 7)


def test_padding_that_leaves_no_pixel():
    geometry = ConvGeometry(stack("1-2-1"), padding=0)
    geometry.check_size(5, 5)
    with pytest.raises(ValueError, match="padding=0 leaves no pixel after level 2") as error:
        geometry.check_size(9, 4)
    for part in ("9x4 pixels came", "2 off", "kernel 3x3"):
        assert part in str(error.value)


@pytest.mark.parametrize("case", [CASES[0], UNIT_CONVS[-1], LEVEL_LINEARS[0]], ids=str)
def test_layouts_compare_copy_and_pickle(case):
    one = layout_of(case) if not hasattr(case, "geometry") else case.geometry
    again = layout_of(case) if not hasattr(case, "geometry") else case.geometry
    for other in (again, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == one and hash(other) == hash(one)
        assert other is not one


def test_a_level_is_told_from_its_units():
    level = Level((UnitLevel(1, 2, 3), UnitLevel(2, 1, 3)))
    assert (level.in_widths, level.out_widths, level.weight_sizes) == ((1, 2), (2, 1), (18, 18))
    assert not level.uniform  # the counts agree, the shapes do not
    assert level.weight_shape == (36, 1, 1, 1)


# --- kernel sizes and groups of a level ----------------------------------------------------------

INVERTED = "4-24-24-4:k1,3,1:g1,24,1"


def test_a_group_is_a_block():
    expand, depthwise, project = stack(INVERTED, INVERTED).levels
    assert expand.blocks == ((4, 24, 1),) * 2
    assert depthwise.blocks == ((1, 1, 3),) * 48
    assert project.blocks == ((24, 4, 1),) * 2
    assert depthwise.in_widths == depthwise.out_widths == (24, 24)
    assert depthwise.weight_sizes == (216, 216)
    assert depthwise.weight_shape == (48, 1, 3, 3)  # a depthwise convolution's own
    assert [w.shape for w in depthwise.unpack(torch.empty(48, 1, 3, 3))] == [(24, 1, 3, 3)] * 2


def test_units_of_the_same_blocks_are_uniform():
    assert stack("4-8:g2", "2-4").levels[0].weight_shape == (12, 2, 3, 3)
    assert stack("4-8:g2", "4-8").levels[0].weight_shape == (36 * 4 + 36 * 8, 1, 1, 1)


def test_groups_leave_a_block_as_wide_as_it_is():
    assert stack(INVERTED).width == 4
    assert stack("24-24:g24").width == 1


def test_rows_take_units_alike_from_level_to_level():
    assert ConvGeometry(stack("4-8-4:g2", "2-4-2")).rows == (3, 3, 1, 2, 4, 2)
    assert ConvGeometry(stack("4-4-4:k5:g4")).rows == (4, 5, 2, 1, 1, 1)
    assert ConvGeometry(stack("3-3:g3", "2-4")).rows == (3, 3, 1, 1, 1, 1, 3, 1, 2, 4)


@pytest.mark.parametrize("unit", [INVERTED, "4-8-4:g1,2", "4-8-4:k1,3"])
def test_no_rows_take_others(unit):
    geometry = ConvGeometry(stack("4-8-4" if unit.count("-") == 2 else "4-8-8-4", unit))
    assert geometry.rows is None
    assert all(level.rows is not None for level in geometry.levels)


def test_each_level_is_padded_by_its_own_kernel_size():
    geometry = ConvGeometry(stack("2-4-4-2:k1,5,3"), dilation=2)
    assert [level.rows[2] for level in geometry.levels] == [0, 4, 2]
    assert geometry.output_size(7, 8) == (7, 8)
    even = ConvGeometry(stack("2-4-2:k1,4"), padding=1)
    assert even.level_sizes(6, 5) == [(6, 5), (8, 7), (7, 6)]


def test_an_int_of_padding_takes_one_kernel_size_a_level():
    assert ConvGeometry(stack("2-4-2:k1,5", "1-2-1:k1,5"), padding=1).output_size(6, 6) == (6, 6)
    with pytest.raises(ValueError, match=r"kernel sizes \[3, 5\] outputs of different sizes"):
        ConvGeometry(stack("2-4-2:k1,5", "1-2-1:k1,3"), padding=1)
    with pytest.raises(ValueError, match="leaves no pixel after level 2 of 2: 3x3 .*kernel 5x5"):
        ConvGeometry(stack("2-4-2:k1,5"), padding=0).check_size(3, 3)
    with pytest.raises(ValueError, match='padding="same" needs odd kernel sizes, got 4'):
        ConvGeometry(stack("2-4-2:k3,4"))


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("4-8-4:g2", "linear units have no groups, got 4-8-4:g2"),
        ("4-8-4:k1,3", "linear units have no kernel size, got 4-8-4:k1,3"),
    ],
)
def test_linear_units_take_neither(unit, message):
    with pytest.raises(ValueError, match=message):
        stack("4-8-4", unit, kernel_size=None)
