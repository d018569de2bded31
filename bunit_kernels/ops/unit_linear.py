"""``stacked_unit_linear``: all levels of linear units in one launch, and their backward pass in
another.

Nothing but the input is kept for the backward pass, which recomputes the hidden activations: inside
``stacked_unit_linear_backward``, unless a graph of the backward pass itself is recorded
(``create_graph=True``). Then it is made of level operators, whose gradients are level operators
again. So whatever can be differentiated was recorded as such, and the fused operator needs no
derivative: without grad mode nothing that a backward pass computes can be differentiated, be it
fused or not. Compilers trace a backward pass without grad mode, too, and find the fused operator.
"""

from __future__ import annotations

import math

import torch

from ..activations import activate
from ._activation_grad import activation_grad, needs_input
from ._check import check_activations, check_linear, check_linear_grad, linear_stack
from ._operator import Operator
from ._shapes import linear_level, linear_rows
from .linear import unit_flops


def _check_forward(x, weights, biases, units, activation, out_activation):
    check_linear(linear_stack(units, len(weights)), x, weights, biases)
    check_activations(activation=activation, out_activation=out_activation)


def _check_backward(grad, x, weights, biases, units, activation, out_activation):
    _check_forward(x, weights, biases, units, activation, out_activation)
    check_linear_grad(linear_stack(units, len(weights)), grad, x)


def _fake_forward(x, weights, biases, units, activation, out_activation):
    depth = len(weights)
    channels = sum(count * widths[-1] for count, widths in linear_rows(units, depth))
    return x.new_empty((*x.shape[:-1], channels))


def _fake_backward(grad, x, weights, biases, units, activation, out_activation):
    return (
        x.new_empty(x.shape),
        [w.new_empty(w.shape) for w in weights],
        [x.new_empty(b.shape) for b in biases],
    )


def _save(ctx, inputs, output):
    x, weights, biases, *ctx.config = inputs
    ctx.depth = len(weights)
    ctx.save_for_backward(x, *weights, *biases)


def _backward(ops, ctx, grad):
    x, *parameters = ctx.saved_tensors
    arguments = (grad, x, parameters[: ctx.depth], parameters[ctx.depth :], *ctx.config)
    if torch.is_grad_enabled():
        gradients = backward_by_level(ops, *arguments)
    else:
        gradients = ops.stacked_unit_linear_backward(*arguments)
    return *gradients, None, None, None


def backward_by_level(ops, grad, x, weights, biases, units, activation, out_activation):
    depth = len(weights)
    rows = [linear_level(units, depth, i) for i in range(depth)]
    names = [activation] * (depth - 1) + [out_activation]

    inputs, saved = [x], []
    for i in range(depth):
        bias = biases[i] if biases else None
        z = ops.stacked_linear(inputs[i], weights[i], bias, rows[i], "identity")
        y = activate(names[i], z)
        saved.append(z if needs_input(names[i]) else y)
        inputs.append(y)

    grad_weights, grad_biases = [None] * depth, [None] * len(biases)
    for i in reversed(range(depth)):
        grad = activation_grad(names[i], grad, saved[i])
        grad_weights[i], grad_bias = ops.stacked_linear_grad_weight(
            grad, inputs[i], weights[i].shape, rows[i]
        )
        if biases:
            grad_biases[i] = grad_bias
        grad = ops.stacked_linear_grad_input(grad, weights[i], rows[i])
    return grad, grad_weights, grad_biases


def _save_nothing(ctx, inputs, output):
    pass


def _no_derivative(ops, ctx, *grads):
    raise RuntimeError(
        "stacked_unit_linear_backward has no derivative: stacked_unit_linear records level "
        "operators in its place where one is wanted (create_graph=True)"
    )


def _flops_forward(x_shape, weight_shapes, bias_shapes, units, *args, **kwargs):
    return unit_flops(units, len(weight_shapes), math.prod(x_shape[:-1]))


def _flops_backward(grad_shape, x_shape, weight_shapes, bias_shapes, units, *args, **kwargs):
    return 2 * unit_flops(units, len(weight_shapes), math.prod(x_shape[:-1]))


OPERATORS = (
    Operator(
        "stacked_unit_linear", _check_forward, _fake_forward, _save, _backward, _flops_forward
    ),
    Operator(
        "stacked_unit_linear_backward",
        _check_backward,
        _fake_backward,
        _save_nothing,
        _no_derivative,
        _flops_backward,
    ),
)
