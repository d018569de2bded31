"""``stacked_unit_conv2d``: all levels of convolutional units in one launch, norms folded in.

The backward pass recomputes the hidden activations level by level, so that nothing but the input
(and the output, where it tells the gradient of the last activation) is kept for it.
"""

from __future__ import annotations

from ..activations import activate
from ..shuffle import unshuffled
from ._activation_grad import activation_grad, needs_input
from ._check import check_activations, check_conv2d, conv_stack
from ._operator import Operator
from ._shapes import conv_level, conv_rows, conv_size, empty_like_format
from .conv2d import level_flops, level_gradients


def level_sizes(shape, units, depth, stride, dilation):
    """Height and width of the output of each level."""
    _, k, pad, _ = next(conv_rows(units, depth))
    sizes, size = [], shape[2:]
    for level in range(depth):
        size = [conv_size(s, k, pad, stride if level == 0 else 1, dilation) for s in size]
        sizes.append(size)
    return sizes


def out_shape(shape, units, depth, stride, dilation):
    channels = sum(count * widths[-1] for count, _, _, widths in conv_rows(units, depth))
    return (shape[0], channels, *level_sizes(shape, units, depth, stride, dilation)[-1])


def _out_widths(units, depth):
    """Output channels of each unit."""
    return [widths[-1] for count, _, _, widths in conv_rows(units, depth) for _ in range(count)]


def _check(x, weights, biases, residual, units, stride, dilation, shuffle, *names):
    stack = conv_stack(units, len(weights))
    check_conv2d(stack, x, weights, biases, residual, stride, dilation)
    activation, out_activation, residual_activation = names
    check_activations(
        activation=activation,
        out_activation=out_activation,
        residual_activation=residual_activation,
    )


def _fake(x, weights, biases, residual, units, stride, dilation, *options):
    return empty_like_format(x, out_shape(x.shape, units, len(weights), stride, dilation))


def _save(ctx, inputs, output):
    x, weights, biases, residual, ctx.units, ctx.stride, ctx.dilation, ctx.shuffle, *names = inputs
    ctx.depth, ctx.num_biases = len(weights), len(biases)
    ctx.names = [names[0]] * (ctx.depth - 1) + [names[1]]
    ctx.residual_activation = None if residual is None else names[2]
    last = ctx.names[-1] if residual is None else ctx.residual_activation
    kept = None if last == "identity" or needs_input(last) else output
    ctx.save_for_backward(x, kept, *weights, *biases)


def _backward(ops, ctx, grad):
    depth = ctx.depth
    x, output, *parameters = ctx.saved_tensors
    weights, biases = parameters[:depth], parameters[depth:]
    rows = [conv_level(ctx.units, depth, i) for i in range(depth)]
    strides = [ctx.stride] + [1] * (depth - 1)

    grad_residual = None
    if ctx.residual_activation is not None:
        grad = grad_residual = activation_grad(ctx.residual_activation, grad, output)

    # Nothing is recomputed for a last activation whose gradient the output tells.
    told = ctx.names[-1] == "identity" or (ctx.residual_activation is None and output is not None)
    inputs, saved = [x], []
    for i in range(depth - 1 if told else depth):
        bias = biases[i] if biases else None
        z = ops.stacked_conv2d(
            inputs[i], weights[i], bias, rows[i], strides[i], ctx.dilation, "identity"
        )
        y = activate(ctx.names[i], z)
        saved.append(z if needs_input(ctx.names[i]) else y)
        inputs.append(y)

    if told:
        grad = activation_grad(ctx.names[-1], grad, output)
    if ctx.shuffle:
        grad = unshuffled(grad, _out_widths(ctx.units, depth), 1)
    grad_weights, grad_biases = [None] * depth, [None] * ctx.num_biases
    for i in reversed(range(depth)):
        config = (rows[i], strides[i], ctx.dilation)
        if i < len(saved):
            grad = activation_grad(ctx.names[i], grad, saved[i])
        need_input = i > 0 or ctx.needs_input_grad[0]
        grad, grad_weights[i], grad_bias = level_gradients(
            ops, grad, inputs[i], weights[i], need_input, True, config
        )
        if biases:
            grad_biases[i] = grad_bias
    grad_x = grad if ctx.needs_input_grad[0] else None
    return grad_x, grad_weights, grad_biases, grad_residual, *[None] * 7


def unit_flops(shape, units, depth, stride, dilation):
    """2 x multiply-adds of all levels for an input of ``shape``."""
    sizes = level_sizes(shape, units, depth, stride, dilation)
    return sum(level_flops(units, depth, i, shape[0] * h * w) for i, (h, w) in enumerate(sizes))


def _flops(x_shape, weight_shapes, bias_shapes, residual, units, stride, dilation, *args, **kwargs):
    return unit_flops(x_shape, units, len(weight_shapes), stride, dilation)


OPERATORS = (Operator("stacked_unit_conv2d", _check, _fake, _save, _backward, _flops),)
