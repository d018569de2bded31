"""``stacked_linear``: one block-diagonal linear level of all units, and its gradients.

As with ``stacked_conv2d``, the gradients' own gradients are these three operators again. Where none
are wanted, the backward operator of whole units (unit_linear.py) makes all gradients of a level in
one pass.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from ._activation_grad import activation_grad, needs_input
from ._check import (
    check_activations,
    check_dtype,
    check_like,
    check_linear,
    check_linear_grad,
    check_numel,
    check_rows,
    check_weight_shape,
    linear_stack,
)
from ._operator import Operator
from ._shapes import linear_rows


def _channels(units, side):
    return sum(count * widths[side] for count, widths in linear_rows(units, 1))


def _check_forward(x, weight, bias, units, activation):
    check_linear(linear_stack(units, 1), x, [weight], [] if bias is None else [bias], listed=False)
    check_activations(activation=activation)


def _check_grad_input(grad, weight, units):
    stack = linear_stack(units, 1)
    check_dtype("grad", grad)
    check_rows("grad", grad, stack.channels[1])
    check_like("weight", weight, grad)
    check_numel("weight", weight, stack.weight_sizes[0])


def _check_grad_weight(grad, x, weight_shape, units):
    stack = linear_stack(units, 1)
    check_dtype("x", x)
    check_rows("x", x, stack.channels[0])
    check_linear_grad(stack, grad, x)
    check_weight_shape(weight_shape, stack.weight_sizes[0])


def _fake_forward(x, weight, bias, units, activation):
    return x.new_empty((*x.shape[:-1], _channels(units, 1)))


def _fake_grad_input(grad, weight, units):
    return grad.new_empty((*grad.shape[:-1], _channels(units, 0)))


def _fake_grad_weight(grad, x, weight_shape, units):
    return x.new_empty(weight_shape), x.new_empty((grad.shape[-1],))


def _save_forward(ctx, inputs, output):
    x, weight, bias, ctx.units, ctx.activation = inputs
    needed = None if ctx.activation == "identity" or needs_input(ctx.activation) else output
    ctx.save_for_backward(x, weight, bias, needed)


def _grad_forward(ops, ctx, grad):
    x, weight, bias, saved = ctx.saved_tensors
    if needs_input(ctx.activation):
        saved = ops.stacked_linear(x, weight, bias, ctx.units, "identity")
    grad = activation_grad(ctx.activation, grad, saved)
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = grad_bias = None
    if (need_weight or need_bias) and not torch.is_grad_enabled():
        biases = [] if bias is None else [bias]
        grad_x, (grad_weight,), grad_biases = ops.stacked_unit_linear_backward(
            grad, x, [weight], biases, ctx.units, "identity", "identity"
        )
        return grad_x, grad_weight, grad_biases[0] if biases else None, None, None
    if need_x:
        grad_x = ops.stacked_linear_grad_input(grad, weight, ctx.units)
    if need_weight or need_bias:
        grad_weight, grad_bias = ops.stacked_linear_grad_weight(grad, x, weight.shape, ctx.units)
    return grad_x, grad_weight, grad_bias if need_bias else None, None, None


def _save_grad_input(ctx, inputs, output):
    grad, weight, ctx.units = inputs
    ctx.save_for_backward(grad, weight)


def _grad_grad_input(ops, ctx, grad_out):
    grad, weight = ctx.saved_tensors
    grad_grad = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.stacked_linear(grad_out, weight, None, ctx.units, "identity")
    if ctx.needs_input_grad[1]:
        grad_weight, _ = ops.stacked_linear_grad_weight(grad, grad_out, weight.shape, ctx.units)
    return grad_grad, grad_weight, None


def _save_grad_weight(ctx, inputs, output):
    grad, x, _, ctx.units = inputs
    ctx.save_for_backward(grad, x)


def _grad_grad_weight(ops, ctx, grad_weight, grad_bias):
    grad, x = ctx.saved_tensors
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.stacked_linear(x, grad_weight, grad_bias, ctx.units, "identity")
    if ctx.needs_input_grad[1]:
        grad_x = ops.stacked_linear_grad_input(grad, grad_weight, ctx.units)
    return grad_grad, grad_x, None, None


def unit_flops(units, depth, rows):
    """2 x multiply-adds of ``depth`` linear levels over ``rows`` rows."""
    return (
        2
        * rows
        * sum(
            count * sum(a * b for a, b in pairwise(widths))
            for count, widths in linear_rows(units, depth)
        )
    )


def _flops_forward(x_shape, weight_shape, bias_shape, units, *args, **kwargs):
    return unit_flops(units, 1, math.prod(x_shape[:-1]))


def _flops_grad_input(grad_shape, weight_shape, units, *args, **kwargs):
    return unit_flops(units, 1, math.prod(grad_shape[:-1]))


def _flops_grad_weight(grad_shape, x_shape, weight_shape, units, *args, **kwargs):
    return unit_flops(units, 1, math.prod(grad_shape[:-1]))


OPERATORS = (
    Operator(
        "stacked_linear",
        _check_forward,
        _fake_forward,
        _save_forward,
        _grad_forward,
        _flops_forward,
    ),
    Operator(
        "stacked_linear_grad_input",
        _check_grad_input,
        _fake_grad_input,
        _save_grad_input,
        _grad_grad_input,
        _flops_grad_input,
    ),
    Operator(
        "stacked_linear_grad_weight",
        _check_grad_weight,
        _fake_grad_weight,
        _save_grad_weight,
        _grad_grad_weight,
        _flops_grad_weight,
    ),
)
