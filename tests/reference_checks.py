"""One operation of the backend in force against the reference loop in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from reference_cases import LEVEL_CONVS, LEVEL_LINEARS, TRAIN_CONVS, UNIT_CONVS, UNIT_LINEARS
from reference_loop import loop
from reference_runs import (
    conv2d,
    converted,
    draw,
    linear,
    on_device,
    outputs_and_gradients,
    roundings,
    unit_conv2d,
    unit_conv2d_train,
    unit_linear,
)
from tolerance import assert_near, kinds, tolerance

from bunit_kernels import backend, backends

#: Those of CPU tensors; Triton's, which takes milliseconds a program when interpreted, has tests of
#: its own.
CPU_BACKENDS = [name for name in backends.available("cpu") if name != "triton"]

NAMED = (
    *((conv2d, case) for case in LEVEL_CONVS),
    *((linear, case) for case in LEVEL_LINEARS),
    *((unit_conv2d, case) for case in UNIT_CONVS),
    *((unit_linear, case) for case in UNIT_LINEARS),
    *((unit_conv2d_train, case) for case in TRAIN_CONVS),
)
_NAMES = [f"{op.__name__}-{case}" for op, case in NAMED]
named_cases = pytest.mark.parametrize(("op", "case"), NAMED, ids=_NAMES)
#: Two dtypes by turns: kernels convert the one and the other in the same places.
named_cases_at_low_precision = pytest.mark.parametrize(
    ("op", "case", "dtype"),
    [(*named, (torch.bfloat16, torch.float16)[i % 2]) for i, named in enumerate(NAMED)],
    ids=_NAMES,
)
PARAMETERS = ("weights", "biases", "gammas", "betas")


def check_against_reference(op, case, dtype, seed, device="cpu"):
    """Output and all gradients of ``op`` under the backend in force, on ``device``."""
    check_backends([backends.get_backend()], op, case, dtype, seed, device)


def check_backends(names, op, case, dtype, seed, device="cpu"):
    """The same of each of several backends, on the same tensors."""
    norms = op is unit_conv2d_train
    tensors = converted(draw(case, seed, norms=norms), dtype)
    expected, scales = reference_results(op, case, tensors)
    tensors = on_device(tensors, device)
    for name in names:
        with backend(name):
            actual = outputs_and_gradients(op, case, tensors)
        assert actual.keys() == expected.keys()
        check_results(actual, expected, scales, case, dtype, name)


def reference_results(op, case, tensors):
    """What ``op`` gives for ``tensors`` by the ``reference`` backend in float64, with all
    gradients; and the scales of the gradients' errors."""
    exact = converted(tensors, torch.float64)
    with backend("reference"):
        expected = outputs_and_gradients(op, case, exact)
    return expected, gradient_scales(case, exact, expected)


def check_results(actual, expected, scales, case, dtype, name=""):
    """Whatever is in ``actual`` is of ``dtype`` and as near as that allows to what is expected."""
    share = tolerance(dtype, case.longest_sum, roundings(case))
    for result, value in actual.items():
        assert value.dtype == dtype
        what = f"{result} of {case} {name}"
        assert_near(value.cpu(), expected[result], share, what, scales.get(result, 0.0))


def check_nonfinite(case, tensors, dtype):
    """Linear units' output and gradients are NaN and infinite where the reference's are, for
    tensors that are not all finite."""
    tensors = converted(tensors, dtype)
    with backend("reference"):
        expected = outputs_and_gradients(unit_linear, case, converted(tensors, torch.float64))
    actual = outputs_and_gradients(unit_linear, case, tensors)
    assert not all(t.isfinite().all() for t in expected.values())
    for name, value in expected.items():
        assert torch.equal(kinds(actual[name]), kinds(value)), f"{name} of {case}"


#: Where fewer values than that pass a level, all may come out small: what is left of larger terms.
FEW = 64


def gradient_scales(case, tensors, expected):
    """What sums the gradients are made of: a parameter's is a sum over all pixels, which may come
    out small in one, so all share the largest; before a norm those at fixed statistics count; where
    few values are summed up to all others, what these are summed up from."""
    scales = {}
    if tensors["gammas"]:
        expected = outputs_and_gradients(partial(loop, fixed_statistics=True), case, tensors)
        scales["grad of x[0]"] = largest(expected["grad of x[0]"])
    elif case.fewest_values < FEW:
        scales = sizes(case, tensors)
    parameters = [n for n in expected if n.split("[")[0].endswith(PARAMETERS)]
    most = max([largest(expected[n]) for n in parameters] + [scales.get(n, 0) for n in parameters])
    return scales | dict.fromkeys(parameters, most)


def sizes(case, tensors):
    """The largest of each result if terms of a sum added up as those of random signs do, to the
    root of the sum of their squares, and nothing cancelled."""
    linear = {"activation": "identity", "out_activation": "identity"}
    linear |= {"residual": "identity"} if case.residual else {}
    squares = {name: [t.square() for t in ts] for name, ts in tensors.items()}
    found = outputs_and_gradients(loop, replace(case, **linear), squares)
    return {name: largest(value) ** 0.5 for name, value in found.items()}


def largest(x):
    return x.abs().max().item() if x.numel() else 0.0
