"""``stacked_conv2d``: one convolutional level of all units, and its gradients.

The gradient operators, ``backward`` being the other two at once, are linear in each tensor, and
their own gradients are again these operators, so derivatives of any order exist.
"""

from __future__ import annotations

from ._activation_grad import activation_grad, needs_input
from ._check import (
    check_activations,
    check_conv2d,
    check_conv2d_grad,
    check_dtype,
    check_like,
    check_numel,
    check_shape,
    check_weight_shape,
    conv_stack,
)
from ._operator import Operator
from ._shapes import conv_rows, conv_size, empty_like_format


def _check_forward(x, weight, bias, units, stride, dilation, activation):
    stack = conv_stack(units, 1)
    biases = [] if bias is None else [bias]
    check_conv2d(stack, x, [weight], biases, None, stride, dilation, listed=False)
    check_activations(activation=activation)


def _check_grad_input(grad, weight, input_size, units, stride, dilation):
    stack = conv_stack(units, 1)
    check_dtype("grad", grad)
    check_shape("grad", grad.shape, (None, stack.channels[1], None, None))
    check_like("weight", weight, grad)
    check_numel("weight", weight, stack.weight_sizes[0])
    check_shape("input_size", input_size, (grad.shape[0], stack.channels[0], None, None))
    check_conv2d_grad(stack, "input_size", input_size, grad, stride, dilation)


def _check_grad_weight(grad, x, weight_shape, units, stride, dilation):
    stack = conv_stack(units, 1)
    check_dtype("x", x)
    check_shape("x", x.shape, (None, stack.channels[0], None, None))
    check_like("grad", grad, x)
    check_weight_shape(weight_shape, stack.weight_sizes[0])
    check_conv2d_grad(stack, "x", x.shape, grad, stride, dilation)


def _check_backward(grad, x, weight, units, stride, dilation):
    check_like("weight", weight, x)
    stack = conv_stack(units, 1)
    check_numel("weight", weight, stack.weight_sizes[0])
    _check_grad_weight(grad, x, [stack.weight_sizes[0]], units, stride, dilation)


def _fake_forward(x, weight, bias, units, stride, dilation, activation):
    rows = list(conv_rows(units, 1))
    _, k, pad, _ = rows[0]
    channels = sum(count * widths[1] for count, _, _, widths in rows)
    height, width = (conv_size(s, k, pad, stride, dilation) for s in x.shape[2:])
    return empty_like_format(x, (x.shape[0], channels, height, width))


def _fake_grad_input(grad, weight, input_size, units, stride, dilation):
    return empty_like_format(grad, input_size)


def _fake_grad_weight(grad, x, weight_shape, units, stride, dilation):
    return x.new_empty(weight_shape), x.new_empty((grad.shape[1],))


def _fake_backward(grad, x, weight, units, stride, dilation):
    grad_weight, grad_bias = _fake_grad_weight(grad, x, weight.shape, units, stride, dilation)
    return empty_like_format(grad, x.shape), grad_weight, grad_bias


def _save_forward(ctx, inputs, output):
    x, weight, bias, *ctx.config, ctx.activation = inputs
    needed = None if ctx.activation == "identity" or needs_input(ctx.activation) else output
    ctx.save_for_backward(x, weight, bias, needed)


def _grad_forward(ops, ctx, grad):
    x, weight, bias, saved = ctx.saved_tensors
    if needs_input(ctx.activation):
        saved = ops.stacked_conv2d(x, weight, bias, *ctx.config, "identity")
    grad = activation_grad(ctx.activation, grad, saved)
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    grads = level_gradients(ops, grad, x, weight, need_x, need_weight or need_bias, ctx.config)
    grad_x, grad_weight, grad_bias = grads
    return grad_x, grad_weight, grad_bias if need_bias else None, None, None, None, None


def level_gradients(ops, grad, x, weight, need_x, need_parameters, config):
    """Gradients of input, weight and bias of a level whose output before its activation has
    gradient ``grad``; ``None`` where not needed."""
    if need_x and need_parameters:
        return ops.stacked_conv2d_backward(grad, x, weight, *config)
    grad_x, grad_weight, grad_bias = None, None, None
    if need_x:
        grad_x = ops.stacked_conv2d_grad_input(grad, weight, x.shape, *config)
    if need_parameters:
        grad_weight, grad_bias = ops.stacked_conv2d_grad_weight(grad, x, weight.shape, *config)
    return grad_x, grad_weight, grad_bias


def _save_grad_input(ctx, inputs, output):
    grad, weight, _, *ctx.config = inputs
    ctx.save_for_backward(grad, weight)


def _grad_grad_input(ops, ctx, grad_out):
    grad, weight = ctx.saved_tensors
    grad_grad = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.stacked_conv2d(grad_out, weight, None, *ctx.config, "identity")
    if ctx.needs_input_grad[1]:
        grad_weight, _ = ops.stacked_conv2d_grad_weight(grad, grad_out, weight.shape, *ctx.config)
    return grad_grad, grad_weight, None, None, None, None


def _save_grad_weight(ctx, inputs, output):
    grad, x, _, *ctx.config = inputs
    ctx.save_for_backward(grad, x)


def _grad_grad_weight(ops, ctx, grad_weight, grad_bias):
    grad, x = ctx.saved_tensors
    grad_grad = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_grad = ops.stacked_conv2d(x, grad_weight, grad_bias, *ctx.config, "identity")
    if ctx.needs_input_grad[1]:
        grad_x = ops.stacked_conv2d_grad_input(grad, grad_weight, x.shape, *ctx.config)
    return grad_grad, grad_x, None, None, None, None


def _save_backward(ctx, inputs, output):
    *tensors, units, stride, dilation = inputs
    ctx.config = units, stride, dilation
    ctx.save_for_backward(*tensors)


def _grad_backward(ops, ctx, grad_grad_x, grad_grad_weight, grad_grad_bias):
    grad, x, weight = ctx.saved_tensors
    need_grad, need_x, need_weight = ctx.needs_input_grad[:3]
    grad_grad = grad_x = grad_weight = None
    if need_grad:
        grad_grad = ops.stacked_conv2d(grad_grad_x, weight, None, *ctx.config, "identity")
        grad_grad = grad_grad + ops.stacked_conv2d(
            x, grad_grad_weight, grad_grad_bias, *ctx.config, "identity"
        )
    if need_x:
        grad_x = ops.stacked_conv2d_grad_input(grad, grad_grad_weight, x.shape, *ctx.config)
    if need_weight:
        grad_weight, _ = ops.stacked_conv2d_grad_weight(
            grad, grad_grad_x, weight.shape, *ctx.config
        )
    return grad_grad, grad_x, grad_weight, None, None, None


def level_flops(units, depth, level, pixels):
    """2 x multiply-adds of one level over ``pixels`` output pixels (batch included)."""
    return (
        2
        * pixels
        * sum(
            count * k * k * widths[level] * widths[level + 1]
            for count, k, _, widths in conv_rows(units, depth)
        )
    )


def _flops_forward(x_shape, weight_shape, bias_shape, units, *args, out_shape=None, **kwargs):
    return level_flops(units, 1, 0, out_shape[0] * out_shape[2] * out_shape[3])


def _flops_gradient(grad_shape, tensor_shape, size, units, *args, **kwargs):
    return level_flops(units, 1, 0, grad_shape[0] * grad_shape[2] * grad_shape[3])


def _flops_backward(*args, **kwargs):
    return 2 * _flops_gradient(*args, **kwargs)


OPERATORS = (
    Operator(
        "stacked_conv2d",
        _check_forward,
        _fake_forward,
        _save_forward,
        _grad_forward,
        _flops_forward,
    ),
    Operator(
        "stacked_conv2d_grad_input",
        _check_grad_input,
        _fake_grad_input,
        _save_grad_input,
        _grad_grad_input,
        _flops_gradient,
    ),
    Operator(
        "stacked_conv2d_grad_weight",
        _check_grad_weight,
        _fake_grad_weight,
        _save_grad_weight,
        _grad_grad_weight,
        _flops_gradient,
    ),
    Operator(
        "stacked_conv2d_backward",
        _check_backward,
        _fake_backward,
        _save_backward,
        _grad_backward,
        _flops_backward,
    ),
)
