"""Linear units of the ``triton`` backend under Triton's interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from opchecked import opchecked
from reference_cases import LEVEL_LINEARS, UNIT_LINEARS, LinearCase, random_linear, smooth, some
from reference_checks import check_against_reference, check_nonfinite
from reference_runs import converted, draw, linear, outputs_and_gradients, unit_linear

from bunit_kernels import backend, backends

if reason := backends.why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from bunit_kernels.triton_kernels import NAMESPACE, linear_units, tuning, work
from bunit_kernels.triton_kernels import linear as levels

KERNELS = (levels.columns_kernel, linear_units.forward_kernel, linear_units.backward_kernel)
CASES = [
    *((linear, case) for case in LEVEL_LINEARS),
    *((unit_linear, case) for case in UNIT_LINEARS),
    (linear, LinearCase("32-48", 2, size=(70,))),
    (linear, LinearCase("80-100", 2, size=(3, 7))),
    (unit_linear, LinearCase("20-33-64", 2, size=(70,))),
    (unit_linear, LinearCase("2-80-3", 2, size=(9,))),  # too wide for registers
    (unit_linear, LinearCase("2-3-1-4-2-3", 3, size=(9,))),  # too deep for one launch
]
NAMED = some(CASES, 3)
named = pytest.mark.parametrize(
    ("op", "case"), NAMED, ids=[f"{op.__name__}-{case}" for op, case in NAMED]
)


@pytest.fixture(autouse=True)
def triton():
    with backend("triton"):
        yield


@named
def test_outputs_and_gradients(op, case, seed):
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize(
    ("op", "case"), some(CASES, 9), ids=[f"{op.__name__}-{case}" for op, case in some(CASES, 9)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_at_low_precision(op, case, dtype, seed):
    check_against_reference(op, smooth(case), dtype, seed)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("op", [linear, unit_linear], ids=lambda f: f.__name__)
def test_random_units(op, index, seed):
    case = random_linear(random.Random(seed), depth=1 if op is linear else None)
    check_against_reference(op, case, torch.float32, seed)


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "grad", "weights"])
def test_nan_and_infinity_travel(where, value, name, seed):
    """Through their own unit alone: units are filled up to tiles, but not with one another."""
    case = LinearCase(("4-8-4", "1-2-1") * 2, size=(37,), activation=name, out_activation=name)
    tensors = draw(case, seed)
    tensors[where][0][3] = value
    check_nonfinite(case, tensors, torch.float32)


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weights", "biases"])
@pytest.mark.parametrize("depth", [2, 4])
def test_rows_that_do_not_exist_add_nothing(where, value, depth, seed):
    """A block of rows is filled up with zeros; 0 times an infinite hidden activation is NaN."""
    widths = "-".join(["16", "20", "17", "16", "18"][: depth + 1])
    case = LinearCase(widths, 2, size=(3,), activation="identity", out_activation="identity")
    tensors = draw(case, seed)
    tensors["x"][0].abs_()
    tensors[where][0].view(-1)[3] = value
    check_nonfinite(case, tensors, torch.float32)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kernel.__name__)
def test_every_configuration_gives_the_same(kernel, seed, monkeypatch):
    """Also what measuring takes: ``triton.autotune`` asks for the configurations worth trying."""
    if kernel is levels.columns_kernel:
        op, case = linear, LinearCase(("3-5", "2-1"), size=(70,))
    else:
        op, case = unit_linear, LinearCase("3-18-5", 2, size=(70,))
    tensors = converted(draw(case, seed), torch.float32)
    chosen, launched, run_as_ever = [], set(), tuning.Tuned.run

    def run(self, *args, **constants):
        if self is not kernel:
            return run_as_ever(self, *args, **constants)
        self.measured.nargs = dict(zip(self.kernel.arg_names, args, strict=False))
        worth_trying = self.measured.prune_configs(constants)
        assert worth_trying and all(config in self.configs for config in worth_trying)
        launched.add(str(chosen[-1]))
        return self.kernel.run(*args, **constants, **chosen[-1].all_kwargs())

    monkeypatch.setattr(tuning.Tuned, "run", run)
    with backend("reference"):
        expected = outputs_and_gradients(op, case, converted(tensors, torch.float64))
    for config in kernel.configs:
        chosen.append(config)
        actual = outputs_and_gradients(op, case, tensors)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name].double(), value, rtol=1e-5, atol=1e-5)
    assert launched == set(map(str, kernel.configs))


@pytest.mark.parametrize(
    ("op", "case"),
    [
        (linear, LinearCase("4-8", 3)),
        (unit_linear, LinearCase("4-8-4", 3)),
        (unit_linear, LinearCase(("20-18-20", "1-2-1"), bias=False)),
    ],
    ids=["level", "unit", "mixed"],
)
def test_fake_kernels_tell_shapes_strides_and_dtypes(op, case, seed):
    """Every operator called on the way, forward and backward, passes opcheck."""
    with opchecked(NAMESPACE):
        outputs_and_gradients(op, case, converted(draw(case, seed), torch.float32))


@pytest.mark.parametrize("case", [LinearCase("4-8-4", 3), LinearCase(("4-8-4", "1-20-3"))], ids=str)
def test_one_launch_and_one_work_list(case, seed, monkeypatch):
    """However many levels and kinds of units; another batch makes no other work list."""
    launched, run_as_ever = [], tuning.Tuned.run

    def run(self, *args, **constants):
        launched.append(self.kernel.__name__)
        return run_as_ever(self, *args, **constants)

    monkeypatch.setattr(tuning.Tuned, "run", run)
    tensors = converted(draw(case, seed), torch.float32)
    work._linear_work.cache_clear()
    with torch.no_grad():
        for rows in (5, 4, 3):
            tensors["x"] = [x[:rows] for x in tensors["x"]]
            unit_linear(case, tensors)
    assert launched == ["forward_kernel"] * 3
    assert work._linear_work.cache_info().misses == 1
