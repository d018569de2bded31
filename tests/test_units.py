"""UnitSpec: parsing, equality, printing, sampling."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter

import pytest

from bunit_kernels import PAPER_POOL, UnitSpec


@pytest.mark.parametrize(
    ("spec", "widths", "kernel_size"),
    [
        ("2-4", (2, 4), None),
        ("2-4-2", (2, 4, 2), None),
        ("1-2-3-4-5", (1, 2, 3, 4, 5), None),
        ("3-2-1:k5", (3, 2, 1), 5),
        ("128-256-64", (128, 256, 64), None),
        (" 2-4-2 ", (2, 4, 2), None),
        ((2, 4, 2), (2, 4, 2), None),
        ([16, 16], (16, 16), None),
        (UnitSpec("3-2-1:k5"), (3, 2, 1), 5),
    ],
)
def test_parse(spec, widths, kernel_size):
    unit = UnitSpec(spec)
    assert (unit.widths, unit.kernel_size) == (widths, kernel_size)
    assert (unit.in_channels, unit.out_channels) == (widths[0], widths[-1])
    assert unit.depth == len(widths) - 1


def test_kernel_size_argument():
    assert UnitSpec("2-4-2", kernel_size=5) == UnitSpec("2-4-2:k5") == UnitSpec((2, 4, 2), 5)
    assert UnitSpec("2-4-2:k5", kernel_size=5).kernel_size == 5
    with pytest.raises(ValueError, match="kernel size 5, got 3"):
        UnitSpec("2-4-2:k5", kernel_size=3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "2-",
        "-2-4",
        "2--4",
        "2-4-",
        "a-b",
        "2x4x2",
        "2-4:5",
        "2-4:k",
        "2-4k5",
        "2-4.5",
        "2-4:k5:k3",
        "2 - 4",
        "2-4-2\n3",
        "+2-4",
    ],
)
def test_text_that_does_not_parse(text):
    with pytest.raises(ValueError, match="cannot parse unit") as error:
        UnitSpec(text)
    assert repr(text) in str(error.value)
    assert "'2-4-2'" in str(error.value)  # what was expected, by an example


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("2-0-2", "widths must be at least 1, got '2-0-2'"),
        ((2, -4), r"widths must be at least 1, got \(2, -4\)"),
        ((2,), r"at least two widths, got \(2,\)"),
        ((), r"at least two widths, got \(\)"),
        ("2-4-2:k0", "kernel size must be an int of at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(spec, message):
    with pytest.raises(ValueError, match=message):
        UnitSpec(spec)


@pytest.mark.parametrize("spec", [None, 2, 2.5, (2, 4.0), (2, "4"), (True, 2), {2, 4}])
def test_other_types(spec):
    with pytest.raises(TypeError, match="a unit is a string like") as error:
        UnitSpec(spec)
    assert type(spec).__name__ in str(error.value)


@pytest.mark.parametrize("kernel_size", [0, -3, 2.0, True, "3"])
def test_bad_kernel_size(kernel_size):
    with pytest.raises(ValueError, match="kernel size must be an int of at least 1, got"):
        UnitSpec("2-4-2", kernel_size=kernel_size)


def test_equality_and_hash():
    assert UnitSpec("2-4-2") == UnitSpec((2, 4, 2))
    assert hash(UnitSpec("2-4-2")) == hash(UnitSpec((2, 4, 2)))
    assert UnitSpec("2-4-2") != UnitSpec("2-4-2:k3")
    assert UnitSpec("2-4-2") != "2-4-2"
    assert len({UnitSpec("2-4-2"), UnitSpec("2-4-2"), UnitSpec("2-4-2:k5")}) == 2


@pytest.mark.parametrize("text", ["2-4", "2-4-2", "3-2-1:k5"])
def test_round_trips(text):
    unit = UnitSpec(text)
    assert str(unit) == text
    assert eval(repr(unit)) == unit
    assert UnitSpec(str(unit)) == unit
    assert pickle.loads(pickle.dumps(unit)) == unit
    assert copy.deepcopy(unit) == unit


def test_is_immutable():
    with pytest.raises(AttributeError):
        UnitSpec("2-4-2").widths = (1, 2)


def test_paper_pool():
    assert [str(u) for u in PAPER_POOL] == ["1-2-1", "1-2-2", "1-2-3", "2-1-2", "2-1-1", "3-2-1"]


DRAWN_WITH_SEED_30 = (
    "2-1-2 1-2-2 1-2-1 2-1-2 1-2-2 1-2-2 1-2-3 2-1-2 3-2-1 1-2-3 "
    "3-2-1 3-2-1 1-2-2 1-2-1 1-2-1 3-2-1 2-1-2 3-2-1 3-2-1 2-1-2"
)


def test_a_seed_draws_the_same_units_everywhere():
    assert " ".join(map(str, UnitSpec.sample(20, seed=30))) == DRAWN_WITH_SEED_30


def test_sample_leaves_the_global_generator_alone():
    state = random.getstate()
    UnitSpec.sample(5, seed=1)
    assert random.getstate() == state


def test_sample_without_a_seed_varies():
    draws = {UnitSpec.sample(20) for _ in range(5)}
    assert len(draws) == 5


def test_sample_is_uniform():
    counts = Counter(UnitSpec.sample(6000, seed=0))
    # 1000 expected of each, standard deviation 29.
    assert set(counts) == set(PAPER_POOL)
    assert all(850 < count < 1150 for count in counts.values())


def test_sample_from_another_pool():
    units = UnitSpec.sample(50, pool=["2-4-2", UnitSpec("4-8-4:k5")], seed=3)
    assert set(units) == {UnitSpec("2-4-2"), UnitSpec("4-8-4:k5")}


def test_sample_needs_units_and_a_pool():
    with pytest.raises(ValueError, match="num_units must be at least 1, got 0"):
        UnitSpec.sample(0)
    with pytest.raises(ValueError, match="pool to sample units from is empty"):
        UnitSpec.sample(3, pool=[])


# --- kernel sizes and groups ---------------------------------------------------------------------

INVERTED = "4-24-24-4:k1,3,1:g1,24,1"


@pytest.mark.parametrize(
    ("spec", "kernel_size", "groups"),
    [
        ("4-8-4", None, 1),
        ("4-8-4:g2", None, 2),
        ("4-8-4:k5:g2", 5, 2),
        ("4-8-4:k1,3", (1, 3), 1),
        ("4-8-4:g1,4", None, (1, 4)),
        (INVERTED, (1, 3, 1), (1, 24, 1)),
        (UnitSpec(INVERTED), (1, 3, 1), (1, 24, 1)),
        ("4-8-4:k3,3:g2,2", 3, 2),
        ("4-8-4:g1", None, 1),
        ("4-8:k1:g4", 1, 4),
    ],
)
def test_kernel_sizes_and_groups(spec, kernel_size, groups):
    unit = UnitSpec(spec)
    assert (unit.kernel_size, unit.groups) == (kernel_size, groups)
    kernels = unit.level_kernels(7)
    assert len(kernels) == len(unit.level_groups) == unit.depth
    assert kernels == (kernel_size if isinstance(kernel_size, tuple) else kernels)
    assert (7 in kernels) == (kernel_size is None)


@pytest.mark.parametrize(
    ("spec", "shortest"),
    [
        ("4-8-4:k5,5", "4-8-4:k5"),
        ("4-8-4:g2,2", "4-8-4:g2"),
        ("4-8-4:g1,1", "4-8-4"),
        ("4-8-4:k3,3:g1,1", "4-8-4:k3"),
        (INVERTED, INVERTED),
    ],
)
def test_what_is_said_in_two_ways_is_the_same_unit(spec, shortest):
    one, other = UnitSpec(spec), UnitSpec(shortest)
    assert one == other and hash(one) == hash(other)
    assert str(one) == shortest and eval(repr(one)) == one
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert copied == one


def test_kernel_sizes_and_groups_as_arguments():
    assert UnitSpec((4, 24, 24, 4), (1, 3, 1), [1, 24, 1]) == UnitSpec(INVERTED)
    assert UnitSpec("4-8-4", 3, (2, 2)) == UnitSpec("4-8-4:k3:g2")
    assert UnitSpec(UnitSpec("4-8-4"), groups=2) == UnitSpec("4-8-4:g2", groups=2)
    with pytest.raises(ValueError, match="already has kernel size 1,3, got 3 too"):
        UnitSpec("4-8-4:k1,3", 3)
    with pytest.raises(ValueError, match="already has number of groups 4, got 2 too"):
        UnitSpec("4-8-4:g4", groups=2)


def test_units_of_other_groups_or_kernel_sizes_differ():
    specs = ("4-8-4", "4-8-4:g2", "4-8-4:g1,2", "4-8-4:k3", "4-8-4:k3,1", "4-8-4:k1,3")
    assert len(set(map(UnitSpec, specs))) == len(specs)


def test_a_level_as_a_unit():
    unit = UnitSpec("4-24-12-4:k1,3,1:g1,12,2")
    assert [str(unit.level(i)) for i in range(3)] == ["4-24:k1", "24-12:k3:g12", "12-4:k1:g2"]
    assert UnitSpec("2-4-2").level(0) == UnitSpec("2-4")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("4-6-4:g4,1", "level 1 of unit '4-6-4:g4,1' has 4 -> 6 channels and 4 groups"),
        ("4-8-6:g4", "level 2 of unit '4-8-6:g4' has 8 -> 6 channels and 4 groups"),
        ("4-8-4:k1,3,1", "as many as unit '4-8-4:k1,3,1' has levels, 2; got 3: 1,3,1"),
        ("4-8-8-4:g2,4", "as many as unit '4-8-8-4:g2,4' has levels, 3; got 2: 2,4"),
        ("4-8-4:g0", "number of groups must be an int of at least 1, got 0"),
        ("4-8-4:k3,0", "kernel size must be an int of at least 1, got 0"),
    ],
)
def test_kernel_sizes_and_groups_that_do_not_fit(spec, message):
    with pytest.raises(ValueError, match=message):
        UnitSpec(spec)


@pytest.mark.parametrize("groups", [0, -2, 2.0, True, "2", (1, 2.0), ()])
def test_bad_groups(groups):
    with pytest.raises(ValueError, match="number of groups"):
        UnitSpec("4-8-4", groups=groups)


@pytest.mark.parametrize(
    "text", ["4-8:g", "4-8:k3,", "4-8:g2:k3", "4-8:k,3", "4-8:g2.5", "4-8:gg2"]
)
def test_kernel_sizes_and_groups_that_do_not_parse(text):
    with pytest.raises(ValueError, match="cannot parse unit"):
        UnitSpec(text)
