"""The operators ``torch.ops.bunit_kernels.*``: schemas, fake kernels, autograd, FLOPs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from module_cases import CONV_LAYERS, LINEAR_LAYERS, conv_layer, image, linear_layer
from operator_calls import (
    OPERATORS,
    UNIT_LINEAR_CHECKS,
    arguments,
    conv_arguments,
    in_one_launch,
    tensors_for,
)
from reference_cases import (
    LEVEL_CONVS,
    LEVEL_LINEARS,
    TRAIN_CONVS,
    UNIT_CONVS,
    UNIT_LINEARS,
    ConvCase,
    LinearCase,
)
from reference_runs import conv2d, draw, laid_out, linear, unit_conv2d, unit_linear
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bunit_kernels import StackedConv2d, backend

ops = torch.ops.bunit_kernels


def flattened(result):
    return list(torch.utils._pytree.tree_leaves(result))


def test_every_operator_is_checked():
    """All that take tensors: others tell what was built, such as for which GPUs, if for any."""
    defined = {
        schema.name.removeprefix("bunit_kernels::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("bunit_kernels::")
        and any("Tensor" in str(argument.type) for argument in schema.arguments)
    }
    assert defined == set(OPERATORS)


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires grad"])
@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, (cases, _) in OPERATORS.items() for case in cases],
    ids=str,
)  # fmt: skip
def test_opcheck(name, case, requires_grad):
    if name.endswith("_backward") and requires_grad:
        pytest.skip("has no derivative: test_training_has_no_second_derivative and others")
    t = tensors_for(name, case)
    args = arguments(name, case, t)
    for tensor in flattened(args):
        if isinstance(tensor, torch.Tensor) and requires_grad:
            tensor.requires_grad_()
    torch.library.opcheck(getattr(ops, name).default, args)


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_kernels_tell_shapes_strides_and_dtypes(name):
    """On all named cases; ``opcheck`` asks the same of few, and with symbolic sizes."""
    for index, case in enumerate(OPERATORS[name][1]):
        dtype = (torch.float32, torch.bfloat16)[index % 2]
        args = arguments(name, case, tensors_for(name, case, dtype))
        real = flattened(getattr(ops, name)(*args))
        with FakeTensorMode() as mode:
            fake_args = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args)
            fake = flattened(getattr(ops, name)(*fake_args))
        for one, other in zip(real, fake, strict=True):
            assert one.shape == other.shape, case
            assert one.dtype == other.dtype, case
            assert one.numel() == 0 or one.stride() == other.stride(), case


# --- derivatives ---------------------------------------------------------------------------------


def over_tensors(name, case, t):
    """``name`` as a function of its tensors alone, and those tensors."""
    args = arguments(name, case, t)
    leaves, spec = torch.utils._pytree.tree_flatten(args)
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors):
        filled = list(leaves)
        for i, tensor in zip(at, tensors, strict=True):
            filled[i] = tensor
        out = getattr(ops, name)(*torch.utils._pytree.tree_unflatten(filled, spec))
        # Of the training operator, what it keeps for its backward pass has no gradient.
        return out[0] if name.endswith("train") else out

    return function, tuple(leaves[i].detach().requires_grad_() for i in at)


SMALL_LEVELS = (
    ConvCase("2-3", 2, size=(2, 4, 3), out_activation="identity"),
    ConvCase("2-3", 2, size=(2, 4, 3), out_activation="gelu", dilation=2),
    ConvCase(("1-2", "2-1:k5"), size=(2, 3, 4), out_activation="silu", stride=2, bias=False),
    ConvCase("2-1", 2, size=(1, 5, 4), padding=0, out_activation="relu", layout="channels_last"),
)
SMALL_UNITS = (
    ConvCase("2-3-1", 2, size=(2, 4, 3), activation="silu", out_activation="gelu"),
    ConvCase(("1-2-1", "2-1-2:k5"), size=(2, 3, 4), stride=2, residual="relu", bias=False),
    ConvCase("2-1-2-1", 1, size=(2, 5, 4), layout="channels_last", activation="hardswish"),
)
SMALL_LINEARS = (
    LinearCase("2-3", 3, size=(3,), out_activation="gelu"),
    LinearCase(("1-2", "2-1"), size=(2, 2), out_activation="relu6", bias=False),
)
SMALL_UNIT_LINEARS = (
    LinearCase("2-3-2", 2, size=(3,), activation="silu", out_activation="identity"),
    LinearCase(("1-2-1", "2-1-3"), size=(2, 2), activation="relu", bias=False),
)
DIFFERENTIABLE = {
    **{name: SMALL_LEVELS for name in OPERATORS if name.startswith("stacked_conv2d")},
    **{name: SMALL_LINEARS for name in OPERATORS if name.startswith("stacked_linear")},
    "stacked_unit_conv2d": SMALL_UNITS,
    "stacked_unit_conv2d_train": SMALL_UNITS,
    "stacked_unit_linear": SMALL_UNIT_LINEARS,
}
TWICE = {name: cases for name, cases in DIFFERENTIABLE.items() if not name.endswith("train")}


def pairs(table):
    return pytest.mark.parametrize(
        ("name", "case"), [(n, c) for n, cases in table.items() for c in cases], ids=str
    )


@pairs(DIFFERENTIABLE)
def test_gradcheck(name, case):
    function, tensors = over_tensors(name, case, tensors_for(name, case))
    assert torch.autograd.gradcheck(function, tensors, fast_mode=False)


@pairs(TWICE)
def test_gradgradcheck(name, case):
    function, tensors = over_tensors(name, case, tensors_for(name, case))
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_training_has_no_second_derivative():
    layer = conv_layer("uniform", dtype=torch.float64)
    x = image(layer).requires_grad_()
    with backend("cpp"):
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"no second derivative.*backend\('torch'\)"):
            grad.sum().backward()


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_training_has_a_second_derivative_by_pytorchs_operators(name):
    layer = conv_layer("no norm", dtype=torch.float64, norm="batch")
    x = image(layer, size=(2, 2)).requires_grad_()
    with backend(name):
        assert torch.autograd.gradgradcheck(layer, x, fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_units_that_go_by_level_are_differentiable_twice(training, every_backend):
    """But for training by our operators, as for whole units."""
    units = ["2-4-2:k1,3:g1,2", "1-2-1"]
    layer = StackedConv2d(units, activation="silu", out_activation="gelu", dtype=torch.float64)
    layer.train(training)
    leaves = [image(layer, size=(3, 2)).requires_grad_(), *layer.weights]

    def function(x, *weights):
        names = [f"weights.{i}" for i in range(len(weights))]
        state = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, state, (x,))

    assert torch.autograd.gradcheck(function, leaves)
    if training and every_backend not in ("reference", "torch"):
        with pytest.raises(RuntimeError, match="has no second derivative"):
            torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
    else:
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("case", SMALL_UNIT_LINEARS, ids=str)
def test_linear_units_are_differentiable_twice(case, every_backend):
    """As users call them, and not straight from ``torch.ops``."""
    t = tensors_for("stacked_unit_linear", case)
    leaves = [x.detach().requires_grad_() for x in (t["x"][0], *t["weights"], *t["biases"])]

    def function(x, *parameters):
        depth = len(t["weights"])
        return unit_linear(
            case, {**t, "x": [x], "weights": parameters[:depth], "biases": parameters[depth:]}
        )

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def called(run):
    """Names of our operators that ``run`` calls."""
    names = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "bunit_kernels":
                names.append(func._opname)
            return func(*args, **(kwargs or {}))

    with Record():
        run()
    return names


def test_linear_units_go_back_in_one_operator_unless_the_way_is_recorded():
    layer = linear_layer("uniform")
    x = torch.randn(3, 20, requires_grad=True)
    with backend("cpp"):
        plain = called(lambda: torch.autograd.grad(layer(x).sum(), x))
        recorded = called(lambda: torch.autograd.grad(layer(x).sum(), x, create_graph=True))
    assert plain == ["stacked_unit_linear", "stacked_unit_linear_backward"]
    level = linear_layer("norm", num_units=5)  # its levels are apart, each followed by a norm
    with backend("cpp"):
        names = called(lambda: level(x).sum().backward())
    assert names == ["stacked_linear"] * 2 + ["stacked_unit_linear_backward"] * 2
    assert "stacked_unit_linear_backward" not in recorded
    assert "stacked_linear_grad_input" in recorded


def test_the_backward_operator_of_linear_units_has_no_derivative():
    case = UNIT_LINEAR_CHECKS[0]
    args = arguments("x_backward", case, tensors_for("stacked_unit_linear", case))
    grad = args[0].clone().requires_grad_()
    grad_x, _, _ = ops.stacked_unit_linear_backward(grad, *args[1:])
    with pytest.raises(RuntimeError, match="has no derivative"):
        grad_x.sum().backward()


# --- FLOPs ---------------------------------------------------------------------------------------


def flops(run):
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("op", "case"),
    [(conv2d, c) for c in LEVEL_CONVS] + [(unit_conv2d, c) for c in UNIT_CONVS]
    + [(linear, c) for c in LEVEL_LINEARS] + [(unit_linear, c) for c in UNIT_LINEARS],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_flops_are_those_of_pytorchs_operators(op, case):
    counts = {}
    for name in ("reference", "torch", "cpp"):
        with backend(name), torch.no_grad():
            counts[name] = flops(partial(op, case, draw(case)))
    assert counts["cpp"] == counts["reference"] == counts["torch"]
    assert counts["cpp"] > 0 or 0 in case.size


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CONV_LAYERS)
def test_flops_of_a_forward_and_backward_pass(name, training):
    """As the loop's, whose convolutions of one group PyTorch counts right; on top is what the
    gradient of a whole unit recomputes: all levels but the last, whose output is kept."""
    layer = conv_layer(name).train(training)
    x = image(layer).requires_grad_()
    counts, forward = {}, {}
    for which in ("reference", "cpp"):
        with backend(which):
            counts[which] = flops(lambda: layer(x).sum().backward())
            forward[which] = flops(lambda: layer(x))
    assert forward["cpp"] == forward["reference"]
    passes = 3 * forward["reference"]
    if not any(
        "g" in str(unit) for unit in layer.units
    ):  # PyTorch counts no groups on the way back
        assert counts["reference"] == passes
    height, width = layer.geometry.output_size(*x.shape[2:])
    blocks = layer.geometry.layout.levels[-1].blocks
    weights = sum(c_in * c_out * k * k for c_in, c_out, k in blocks)
    hidden = forward["cpp"] - 2 * len(x) * height * width * weights
    whole_unit = layer.geometry.rows is not None and (layer.norms is None or not training)
    assert counts["cpp"] == passes + (hidden if whole_unit else 0)


@pytest.mark.parametrize("name", LINEAR_LAYERS)
def test_flops_of_linear_layers(name):
    layer = linear_layer(name)
    x = torch.randn(7, layer.in_features)
    with backend("cpp"):
        count = flops(lambda: layer(x))
    per_row = sum(a * b for u in layer.units for a, b in zip(u.widths, u.widths[1:], strict=False))
    assert count == 2 * 7 * per_row


@pytest.mark.parametrize("name", [n for n in LINEAR_LAYERS if "norm" not in n])
def test_flops_of_a_training_step_of_linear_layers(name):
    """What the backward pass recomputes is not counted."""
    layer = linear_layer(name)
    x = torch.randn(7, layer.in_features, requires_grad=True)
    with backend("cpp"):
        assert flops(lambda: layer(x).sum().backward()) == 3 * flops(lambda: layer(x))


def test_flops_of_one_known_unit():
    """2-4-2 of 3x3: 144 multiply-adds an output pixel, as counted in the docs."""
    layer = conv_layer("uniform", num_units=1).eval()
    for which in ("reference", "torch", "cpp"):
        with backend(which), torch.no_grad():
            assert flops(lambda: layer(torch.randn(3, 2, 8, 9))) == 2 * 144 * 3 * 8 * 9


# --- layouts of what operators are given ---------------------------------------------------------


@pytest.mark.parametrize("layout", ["transposed", "sliced"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_take_tensors_of_any_strides(name, layout):
    """Straight from ``torch.ops``, as a compiled graph calls them."""
    for case in OPERATORS[name][0]:
        t = tensors_for(name, case)
        args = arguments(name, case, t)
        moved = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda tensor: laid_out(tensor, layout), args
        )
        for one, other in zip(
            flattened(getattr(ops, name)(*args)), flattened(getattr(ops, name)(*moved)), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in in_one_launch(TRAIN_CONVS) if len(c.geometry.layout.levels) > 1], ids=str
)
def test_recomputing_changes_what_is_kept_and_nothing_else(case):
    forward, backward = "stacked_unit_conv2d_train", "stacked_unit_conv2d_train_backward"
    t = tensors_for(backward, case)
    kept, again = (
        getattr(ops, forward)(*conv_arguments(forward, case, t, recompute))
        for recompute in (False, True)
    )
    assert again[1][0].shape == (0,)
    for one, other in zip(
        flattened((kept[0], kept[1][1:], kept[2])),
        flattened((again[0], again[1][1:], again[2])),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for one, other in zip(
        *(flattened(getattr(ops, backward)(*conv_arguments(backward, case, t, recompute)))
          for recompute in (False, True)),
        strict=True,
    ):  # fmt: skip
        # Gradients through the norm of a channel that all but does not vary grow with 1 / its
        # standard deviation.
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_training_keeps_the_input_and_one_output_of_narrow_units():
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    x = torch.randn(4, 8, 12, 10, requires_grad=True)
    layer = StackedConv2d("2-4-2", num_units=4)
    with backend("cpp"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    parameters = sum(p.numel() for p in layer.parameters())
    stats = 3 * (16 + 8)
    assert sum(kept.values()) <= 4 * (2 * x.numel() + parameters + stats)
