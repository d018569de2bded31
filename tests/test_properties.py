"""Layers drawn by hypothesis: every backend that runs here against the float64 reference.

Each example is a random mix of units with random geometry, sizes, strides of the input, of the
parameters and of the gradient, a dtype, and a set of tensors that ask for a gradient; the output
and all gradients asked for are compared. Hypothesis shrinks what fails and prints a line,
``@reproduce_failure(...)``, that repeats it.

The ``ci`` profile (conftest.py) draws some hundred examples; thousands:

    pytest tests/test_properties.py --hypothesis-profile=deep

``--hypothesis-seed=N`` repeats a run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import emulated_build
import pytest
import torch
from case_strategies import PARAMETER_LAYOUT, convolutions, linear_units
from hypothesis import assume, given, note, reject, settings
from hypothesis import strategies as st
from reference_cases import Case, ConvCase, LinearCase, layout_of, quick, smooth
from reference_checks import check_results, gradient_scales, reference_results
from reference_loop import Tensors
from reference_runs import (
    SPREAD,
    NotComparable,
    conv2d,
    converted,
    draw,
    laid_out,
    linear,
    outputs_and_gradients,
    unit_conv2d,
    unit_conv2d_train,
    unit_linear,
)

from bunit_kernels import StackedConv2d, UnitSpec, backend, backends
from bunit_kernels.backends import _crossover

NO_TRITON = backends.why_not("triton", "cpu")
NO_CUDA = emulated_build.why_no_kernels()
BACKENDS = [name for name in ("auto", *backends.available("cpu")) if name != "triton"]
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)
SEED = st.integers(0, 1 << 32)


def share_of_examples(share: float):
    """So many of the examples of the profile in force; some tests take longer for each."""
    return settings(max_examples=max(1, round(settings.default.max_examples * share)))


@dataclass
class Example:
    """Numbers and names alone, like a case."""

    op: Callable
    case: Case
    dtype: torch.dtype
    seed: int
    parameter_layout: str
    wanted: list[str] | None  # tensors whose gradients are asked for, as outputs_and_gradients

    def tensors(self) -> Tensors:
        try:
            norms, spread = self.op is unit_conv2d_train, 0.3 if self.dtype in HALF else SPREAD
            drawn = draw(self.case, self.seed, norms=norms, tries=20, spread=spread)
        except NotComparable:
            reject()
        for name in ("weights", "biases", "gammas", "betas"):
            drawn[name] = [laid_out(t, self.parameter_layout) for t in drawn[name]]
        return converted(drawn, self.dtype)


@st.composite
def examples(choose, op, cases, dtypes=DTYPES):
    case, dtype = choose(cases), choose(st.sampled_from(dtypes))
    if dtype in HALF:
        case = smooth(case)
    if op is unit_conv2d_train:
        # Each norm makes the errors of narrow types larger: two of them, not four.
        case = replace(case, units=first_levels(case.units, 2)) if dtype in HALF else case
        # Of equal images a channel may be all but constant.
        case = replace(case, layout="sliced") if case.layout == "expanded" else case
        parameters = ("weights", "gammas", "betas")
    else:
        parameters = ("weights", "biases") if case.bias else ("weights",)
    depth = layout_of(case).depth
    names = ["x[0]", *(f"{name}[{i}]" for name in parameters for i in range(depth))]
    names += ["residual[0]"] if case.residual else []
    wanted = choose(st.none() | st.lists(st.sampled_from(names), unique=True))
    return Example(op, case, dtype, choose(SEED), choose(PARAMETER_LAYOUT), wanted)


def check(example: Example, names: list[str]) -> None:
    op, case, tensors = example.op, example.case, example.tensors()
    expected, scales = reference_results(op, case, tensors)
    results = len(expected) if example.wanted is None else 1 + len(example.wanted)
    for name in names:
        if torch_errs(name, case, tensors):
            continue
        note(f"backend {name}")
        with backend(name):
            actual = outputs_and_gradients(op, case, tensors, example.wanted)
        assert len(actual) == results
        check_results(actual, expected, scales, case, example.dtype)


def first_levels(units: str | tuple[str, ...], count: int) -> str | tuple[str, ...]:
    if isinstance(units, tuple):
        return tuple(first_levels(unit, count) for unit in units)
    unit = UnitSpec(units)
    kernels = None if unit.kernel_size is None else unit.level_kernels(None)[:count]
    return str(UnitSpec(unit.widths[: count + 1], kernels, unit.level_groups[:count]))


def torch_errs(name: str, case: Case, tensors: Tensors) -> bool:
    """Whether backend ``name`` gives PyTorch's own wrong results, asked for by name."""
    if name in ("auto", "cpp") or not isinstance(case, ConvCase):
        return False
    return _crossover.torch_errs(case.geometry, tensors["x"][0])


one_level = st.just(1)
#: Batch statistics need a few different values a channel, or their variance is a matter of luck.
a_dozen_images = st.integers(12, 35)


@share_of_examples(1)
@given(examples(conv2d, convolutions(one_level, residuals=False)))
def test_level_convolutions(example):
    check(example, BACKENDS)


@share_of_examples(1)
@given(examples(unit_conv2d, convolutions()))
def test_unit_convolutions(example):
    check(example, BACKENDS)


@share_of_examples(1)
@given(examples(unit_conv2d_train, convolutions(images=a_dozen_images)))
def test_unit_convolutions_with_batch_statistics(example):
    check(example, BACKENDS)


@share_of_examples(1)
@given(examples(linear, linear_units(one_level)))
def test_level_linear_maps(example):
    check(example, BACKENDS)


@share_of_examples(1)
@given(examples(unit_linear, linear_units()))
def test_unit_linear_maps(example):
    check(example, BACKENDS)


# --- backends that run in an interpreter, or on an emulation --------------------------------------

#: Small enough for either; both compute in float32.
SLOW_DTYPES = (torch.float32, *HALF)
SMALL = {
    conv2d: convolutions(one_level, images=st.integers(0, 3), residuals=False),
    unit_conv2d: convolutions(st.integers(1, 3), images=st.integers(0, 3)),
    unit_conv2d_train: convolutions(st.integers(1, 2), images=st.integers(12, 14)),
    linear: linear_units(one_level),
    unit_linear: linear_units(),
}
small_examples = st.one_of(examples(op, cases, SLOW_DTYPES) for op, cases in SMALL.items())


def assume_quick(example: Example) -> None:
    assume(isinstance(example.case, LinearCase) or quick([example.case]))


@pytest.mark.skipif(bool(NO_TRITON), reason=str(NO_TRITON))
@share_of_examples(0.05)
@given(small_examples)
def test_triton_interpreted(example):
    assume_quick(example)
    check(example, ["triton"])


@pytest.mark.skipif(bool(NO_CUDA), reason=str(NO_CUDA))
@share_of_examples(0.5)
@given(small_examples)
def test_cuda_emulated(example):
    from cuda_emulation import emulated_cuda

    assume_quick(example)
    with emulated_cuda():
        check(example, ["cuda"])


# --- modules -------------------------------------------------------------------------------------


@st.composite
def layers(choose):
    """An example of a ``StackedConv2d`` with norms, and whether it is in training mode."""
    example = choose(examples(unit_conv2d_train, convolutions(images=a_dozen_images)))
    # With running statistics nothing keeps pre-activations from lying at a kink.
    example = replace(example, case=smooth(example.case), parameter_layout="contiguous")
    return example, choose(st.booleans(), label="training")


def layer_of(case: ConvCase, tensors: Tensors) -> StackedConv2d:
    geometry, dtype = case.geometry, tensors["x"][0].dtype
    options = {name: getattr(geometry, name) for name in ("stride", "padding", "dilation")}
    options |= {"activation": case.activation, "out_activation": case.out_activation}
    units, kernel = geometry.layout.units, case.kernel_size
    layer = StackedConv2d(units, kernel_size=kernel, dtype=dtype, **options)
    with torch.no_grad():
        for i, norm in enumerate(layer.norms):
            layer.weights[i].copy_(tensors["weights"][i])
            norm.weight.copy_(tensors["gammas"][i])
            norm.bias.copy_(tensors["betas"][i])
            norm.running_mean.copy_(tensors["betas"][i].flip(0))
            norm.running_var.copy_(tensors["gammas"][i].flip(0).abs() + 0.5)
    return layer


def layer_results(layer: StackedConv2d, case: ConvCase, tensors: Tensors, wanted) -> dict:
    """As ``outputs_and_gradients``, with the running statistics afterwards; ``layer`` keeps its
    own. Parameters whose gradients are not wanted are frozen."""
    layer = copy.deepcopy(layer)
    leaves = {f"{n}[{i}]": t for n in ("x", "residual") for i, t in enumerate(tensors[n])}
    leaves = {name: t.detach() for name, t in leaves.items()}
    for i, norm in enumerate(layer.norms):
        leaves[f"weights[{i}]"] = layer.weights[i]
        leaves |= {f"gammas[{i}]": norm.weight, f"betas[{i}]": norm.bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_(wanted is None or name in wanted)
    y = layer(leaves["x[0]"], leaves.get("residual[0]"), case.residual or "identity")
    if y.requires_grad:
        y.backward(tensors["grad"][0])
    results = {f"grad of {n}": leaf.grad for n, leaf in leaves.items() if leaf.requires_grad}
    assert all(g is not None for g in results.values())
    assert all(leaf.grad is None for leaf in leaves.values() if not leaf.requires_grad)
    statistics = {n: b for n, b in layer.named_buffers() if not n.endswith("tracked")}
    return {"output": y.detach(), **results, **statistics}


@share_of_examples(0.5)
@given(layers())
def test_layers_in_training_and_eval_mode(drawn):
    example, training = drawn
    case, tensors = example.case, example.tensors()
    layer, exact = layer_of(case, tensors).train(training), converted(tensors, torch.float64)
    with backend("reference"):
        expected = layer_results(copy.deepcopy(layer).double(), case, exact, None)
    gradients = {name: value for name, value in expected.items() if name.startswith("grad")}
    scales = gradient_scales(case, exact, gradients)
    for name in BACKENDS:
        if torch_errs(name, case, tensors):
            continue
        note(f"backend {name}")
        with backend(name):
            actual = layer_results(layer, case, tensors, example.wanted)
        check_results(actual, expected, scales, case, example.dtype)
