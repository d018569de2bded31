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
