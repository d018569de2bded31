"""``stacked_unit_linear``: all levels of linear units in one launch.

The backward pass recomputes the hidden activations level by level, so that nothing but the input
is kept for it.
"""

from __future__ import annotations

import math

from ..activations import activate
from ._activation_grad import activation_grad, needs_input
from ._operator import Operator
from ._shapes import linear_level, linear_rows
from .linear import unit_flops


def _fake(x, weights, biases, units, activation, out_activation):
    depth = len(weights)
    channels = sum(count * widths[-1] for count, widths in linear_rows(units, depth))
    return x.new_empty((*x.shape[:-1], channels))


def _save(ctx, inputs, output):
    x, weights, biases, ctx.units, ctx.activation, ctx.out_activation = inputs
    ctx.depth = len(weights)
    ctx.save_for_backward(x, *weights, *biases)


def _backward(ops, ctx, grad):
    depth = ctx.depth
    x, *parameters = ctx.saved_tensors
    weights, biases = parameters[:depth], parameters[depth:]
    rows = [linear_level(ctx.units, depth, i) for i in range(depth)]
    names = [ctx.activation] * (depth - 1) + [ctx.out_activation]

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
        if i > 0 or ctx.needs_input_grad[0]:
            grad = ops.stacked_linear_grad_input(grad, weights[i], rows[i])
    grad_x = grad if ctx.needs_input_grad[0] else None
    return grad_x, grad_weights, grad_biases, None, None, None


def _flops(x_shape, weight_shapes, bias_shapes, units, *args, **kwargs):
    return unit_flops(units, len(weight_shapes), math.prod(x_shape[:-1]))


OPERATORS = (Operator("stacked_unit_linear", _fake, _save, _backward, _flops),)
