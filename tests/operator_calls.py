"""Calls of the operators ``torch.ops.bunit_kernels.*``: arguments of right ones, and wrong ones
that have to be refused."""

from __future__ import annotations

from functools import partial

import torch
from reference_cases import (
    LEVEL_CONVS,
    LEVEL_LINEARS,
    TRAIN_CONVS,
    UNIT_CONVS,
    UNIT_LINEARS,
    ConvCase,
    LinearCase,
)
from reference_runs import converted, draw

ops = torch.ops.bunit_kernels


def conv_arguments(name, case, t, recompute=None):
    """Positional arguments of the convolutional operator ``name``, for tensors of ``draw``; the
    first level is recomputed in some cases, if nothing else is said."""
    if recompute is None:
        recompute = len(t["weights"]) > 1 and case.stride == 1
    geometry = case.geometry
    config = (geometry.rows, geometry.stride, geometry.dilation)
    names = (case.activation, case.out_activation)
    x, grad, weight = t["x"][0], t["grad"][0], t["weights"][0]
    residual = t["residual"][0] if t["residual"] else None
    bias = t["biases"][0] if t["biases"] else None
    end = (*names, case.residual or "identity")
    match name:
        case "stacked_conv2d":
            return (x, weight, bias, *config, case.out_activation)
        case "stacked_conv2d_grad_input":
            return (grad, weight, list(x.shape), *config)
        case "stacked_conv2d_grad_weight":
            return (grad, x, list(weight.shape), *config)
        case "stacked_conv2d_backward":
            return (grad, x, weight, *config)
        case "stacked_unit_conv2d":
            return (x, t["weights"], t["biases"], residual, *config, case.shuffle, *end)
        case "stacked_unit_conv2d_train":
            return (
                x, t["weights"], t["gammas"], t["betas"], residual, *config, case.shuffle, 1e-5,
                recompute, *end,
            )  # fmt: skip
    forward = conv_arguments("stacked_unit_conv2d_train", case, t, recompute)
    _, pre_norms, stats = ops.stacked_unit_conv2d_train(*forward)
    saved = (t["weights"], t["gammas"], t["betas"], pre_norms, stats)
    return (grad, x, *saved, *config, case.shuffle, *names)


def linear_arguments(name, case, t):
    """Positional arguments of the linear operator ``name`` for tensors of ``draw``."""
    rows = case.stack.linear_rows
    x, grad, weight = t["x"][0], t["grad"][0], t["weights"][0]
    bias = t["biases"][0] if t["biases"] else None
    match name:
        case "stacked_linear":
            return (x, weight, bias, rows, case.out_activation)
        case "stacked_linear_grad_input":
            return (grad, weight, rows)
        case "stacked_linear_grad_weight":
            return (grad, x, list(weight.shape), rows)
    whole = (x, t["weights"], t["biases"], rows, case.activation, case.out_activation)
    return (grad, *whole) if name.endswith("backward") else whole


def tensors_for(name, case, dtype=torch.float64):
    return converted(draw(case, name, norms="train" in name), dtype)


def arguments(name, case, t, recompute=None):
    if isinstance(case, LinearCase):
        return linear_arguments(name, case, t)
    return conv_arguments(name, case, t, recompute)


LEVEL_CHECKS = (
    ConvCase("2-4", 2),
    ConvCase(("1-2", "3-1:k5"), layout="channels_last", grad_layout="channels_last", stride=2),
    ConvCase("2-4", 2, bias=False, padding=0, out_activation="silu", layout="sliced"),
    ConvCase("2-4", 2, size=(0, 6, 5)),
)
UNIT_CHECKS = (
    ConvCase("2-4-2", 2),
    ConvCase(("1-2-1", "3-1-2:k5"), layout="channels_last", stride=2, residual="relu"),
    ConvCase("2-4-3", 2, bias=False, padding=0, out_activation="silu", residual="identity"),
    ConvCase("2-4-3", 4, shuffle=True, residual="relu", layout="channels_last"),
    ConvCase(("2-4-3", "1-2-1", "1-1-2"), shuffle=True, out_activation="silu"),
)
LINEAR_CHECKS = (
    LinearCase("2-4", 3),
    LinearCase(("2-4", "3-1"), size=(2, 3), bias=False, out_activation="gelu"),
)
UNIT_LINEAR_CHECKS = (
    LinearCase("2-4-2", 3),
    LinearCase(("2-4-1", "3-1-2"), size=(2, 3), bias=False, out_activation="gelu"),
)


def in_one_launch(cases):
    """Those that whole-unit operators take."""
    return tuple(case for case in cases if case.geometry.rows is not None)


#: Every operator, the cases it is checked on, and the named cases of other tests that fit it.
OPERATORS = {
    "stacked_conv2d": (LEVEL_CHECKS, LEVEL_CONVS),
    "stacked_conv2d_grad_input": (LEVEL_CHECKS, LEVEL_CONVS),
    "stacked_conv2d_grad_weight": (LEVEL_CHECKS, LEVEL_CONVS),
    "stacked_conv2d_backward": (LEVEL_CHECKS, LEVEL_CONVS),
    "stacked_linear": (LINEAR_CHECKS, LEVEL_LINEARS),
    "stacked_linear_grad_input": (LINEAR_CHECKS, LEVEL_LINEARS),
    "stacked_linear_grad_weight": (LINEAR_CHECKS, LEVEL_LINEARS),
    "stacked_unit_conv2d": (UNIT_CHECKS, in_one_launch(UNIT_CONVS)),
    "stacked_unit_linear": (UNIT_LINEAR_CHECKS, UNIT_LINEARS),
    "stacked_unit_linear_backward": (UNIT_LINEAR_CHECKS, UNIT_LINEARS),
    "stacked_unit_conv2d_train": (UNIT_CHECKS, in_one_launch(TRAIN_CONVS)),
    "stacked_unit_conv2d_train_backward": (UNIT_CHECKS, in_one_launch(TRAIN_CONVS)),
}


def named_arguments(name, args):
    """Arguments of operator ``name`` by their names in its schema."""
    schema = getattr(ops, name).default._schema
    return dict(zip((a.name for a in schema.arguments), args, strict=True))


#: Values that no operator takes, by the name of an int argument.
WRONG_INTS = {
    "stride": (0, -1, 1025, 2**32 + 1, 2**63 - 1),
    "dilation": (0, -1, 2**15, 2**32 + 1, 2**63 - 1),
}
#: The same of places in a row of units; of linear ones, the last two.
WRONG_UNITS = {
    "kernel": (0, -3, 2**15, 2**32 + 3),
    "pad": (-1, 2**15, 2**32 + 1, 2**63 - 1),
    "count": (0, -1, 2**20 + 1, 2**32 + 2, 2**63 - 1),
    "width": (0, -2, 2**31, 2**32 + 2, 2**63 - 1),
}


def wrong_units(name, units):
    """Rows of units that no call of ``name`` takes, by what is wrong."""
    places = {"count": 0, "width": 1}
    if "conv2d" in name:
        places = {"count": 0, "kernel": 1, "pad": 2, "width": 3}
    wrong = {}
    for what, at in places.items():
        for value in WRONG_UNITS[what]:
            wrong[f"{what} {value}"] = [*units[:at], value, *units[at + 1 :]]
    return {**wrong, "no rows": [], "a short row": units[:-1], "rows twice": units * 2}


def changed_tensors(t):
    """Tensors that no call takes in the place of ``t``, by what is wrong."""
    return {
        "another device": t.to("meta"),
        "integers": t.int(),
        "complex": t.to(torch.complex64),
        "too small": t.flatten()[1:],
        "a value": t.flatten()[0],
    }


def wrong_arguments(name, recompute=None):
    """Arguments of operator ``name`` that are right ones but for one, by what is wrong."""
    case = OPERATORS[name][0][0]
    right = named_arguments(name, arguments(name, case, tensors_for(name, case), recompute))
    calls = {}
    for argument, value in right.items():
        if isinstance(value, torch.Tensor):
            wrong = changed_tensors(value)
        elif isinstance(value, str):
            wrong = {"unknown": "swish", "empty": ""}
        elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
            wrong = {"one missing": value[1:], "one more": [*value, value[0]]}
            for what, t in changed_tensors(value[-1]).items():
                wrong[f"the last {what}"] = [*value[:-1], t]
        elif argument == "units":
            wrong = wrong_units(name, value)
        elif argument in ("weight_shape", "input_size"):
            wrong = {"short": value[1:], "negative": [-x for x in value], "none": []}
            wrong["past int64"] = [2**62, *value[1:-1], 4 * value[-1]]
        else:
            wrong = {str(v): v for v in WRONG_INTS.get(argument, ())}
        for what, other in wrong.items():
            calls[f"{argument}: {what}"] = tuple({**right, argument: other}.values())
    return calls


def wrong_calls():
    """Functions of nothing whose call has to be refused, by what is wrong."""
    calls = {
        f"{name}, {what}": partial(getattr(ops, name), *args)
        for name in OPERATORS
        for what, args in wrong_arguments(name).items()
    }
    return {**calls, **mismatched_calls()}


def mismatched_calls():
    """Arguments that are right by themselves and do not fit each other."""
    ops, units, rows = torch.ops.bunit_kernels, [2, 3, 1, 2, 4], [2, 2, 4]
    x, z, w = torch.randn(3, 4, 5, 6), torch.randn(3, 8, 5, 6), torch.randn(8, 2, 3, 3)
    two = [2, 3, 1, 2, 4, 2]
    ws = [w, torch.randn(4, 4, 3, 3)]
    norms = [torch.ones(8), torch.ones(4)]
    zs, stats, grad = [z, x], torch.ones(3, 12), torch.randn(3, 4, 5, 6)
    names = ("relu", "relu")

    def train_backward(**changed):
        given = {"grad": grad, "gammas": norms, "betas": norms, "zs": zs, "stats": stats, **changed}
        return lambda: ops.stacked_unit_conv2d_train_backward(
            given["grad"], x, given.get("ws", ws), given["gammas"], given["betas"], given["zs"],
            given["stats"], two, 1, 1, False, *names
        )  # fmt: skip

    sizes = [1, 3, 1, 2, 2, 1, 5, 1, 2, 2, 1, 3, 1, 2, 2]
    many, y = torch.randn(1, 6, 32, 32), torch.randn(1, 6, 32, 32)
    unequal = [1, 3, 1, 2, 2, 2, 1, 5, 1, 2, 2, 2, 1, 3, 1, 2, 2, 2]
    r, s, v = torch.randn(5, 4), torch.randn(5, 8), torch.randn(8, 2)
    return {
        "rows of a gradient": lambda: ops.stacked_linear_grad_weight(s[:3], r, [8, 2], rows),
        "dtype of rows": lambda: ops.stacked_linear_grad_weight(s.double(), r, [8, 2], rows),
        "dtype of a linear weight": lambda: ops.stacked_linear_grad_input(s, v.double(), rows),
        "a bias short": lambda: ops.stacked_unit_linear(
            r, [v, torch.randn(4, 4)], [torch.ones(8)], [2, 2, 4, 2], *names
        ),
        "height": lambda: ops.stacked_conv2d_grad_input(z, w, [3, 4, 7, 6], units, 1, 1),
        "width": lambda: ops.stacked_conv2d_grad_weight(z, x[..., :5], w.shape, units, 1, 1),
        "stride": lambda: ops.stacked_conv2d_backward(z, x, w, units, 2, 1),
        "dtype of a gradient": lambda: ops.stacked_conv2d_backward(z.double(), x, w, units, 1, 1),
        "dtype of a weight": lambda: ops.stacked_conv2d_backward(z, x, w.double(), units, 1, 1),
        "gamma missing": train_backward(gammas=norms[:1]),
        "beta too short": train_backward(betas=[torch.ones(7), norms[1]]),
        "no outputs of levels": train_backward(zs=[]),
        "size of a level's output": train_backward(zs=[z[..., :4], x]),
        "channels of a level's output": train_backward(zs=[x, x]),
        "size of the gradient": train_backward(grad=grad[..., :3]),
        "statistics of fewer channels": train_backward(stats=torch.ones(3, 11)),
        "dtype of statistics": train_backward(stats=stats.double()),
        "weight too small": train_backward(ws=[w, ws[1][:2]]),
        "input of other channels, recomputed": lambda: ops.stacked_unit_conv2d_train_backward(
            grad, z, ws, norms, norms, [x.new_empty(0), x], stats, two, 1, 1, False, *names
        ),
        "outputs of several sizes": lambda: ops.stacked_conv2d(
            many, torch.randn(172), None, sizes, 1, 1, "identity"
        ),
        "outputs of several sizes, back": lambda: ops.stacked_conv2d_backward(
            y, many, torch.randn(172), sizes, 1, 1
        ),
        "outputs of several sizes, whole units": lambda: ops.stacked_unit_conv2d(
            many, [torch.randn(172)] * 2, [], None, unequal, 1, 1, False, *names, "identity"
        ),
        "no output": lambda: ops.stacked_conv2d(
            x[..., :2, :2], w, None, [2, 3, 0, 2, 4], 2, 1, "identity"
        ),
        "no pixels": lambda: ops.stacked_conv2d(x[..., :0], w, None, units, 1, 1, "identity"),
        "eps": lambda: ops.stacked_unit_conv2d_train(
            x, ws, norms, norms, None, two, 1, 1, False, -1.0, False, *names, "identity"
        ),
        "memory": lambda: ops.stacked_conv2d(
            x, w, None, [2, 3, 2**15 - 1, 2, 4], 1, 2**15 - 1, "identity"
        ),
        "one level to recompute": lambda: ops.stacked_unit_conv2d_train(
            x, [w], norms[:1], norms[:1], None, units, 1, 1, False, 1e-5, True, *names, "identity"
        ),
    }
