"""``stacked_unit_conv2d_train``: all levels of convolutional units, each followed by batch
normalisation with the batch's own statistics.

Kept for the backward pass: the input, what each level gave before its norm (with ``recompute`` each
but the first), and the statistics (and the output, where the residual's activation needs it). What
is not kept is made again.
"""

from __future__ import annotations

import math

import torch

from ._activation_grad import activation_grad
from ._check import (
    check_activations,
    check_conv2d,
    check_device,
    check_levels,
    check_like,
    check_norms,
    check_shape,
    conv_stack,
    refuse,
)
from ._operator import Operator
from ._shapes import conv_rows, empty_like_format
from .unit_conv2d import level_sizes, unit_flops


def _widths(units, depth):
    """Channels of all units together after each level."""
    rows = list(conv_rows(units, depth))
    return [sum(count * widths[i + 1] for count, _, _, widths in rows) for i in range(depth)]


def _stats_dtype(x):
    return torch.promote_types(x.dtype, torch.float32)


def _check_forward(
    x, weights, gammas, betas, residual, units, stride, dilation, shuffle, eps, recompute, *names
):
    stack = conv_stack(units, len(weights))
    check_conv2d(stack, x, weights, [], residual, stride, dilation)
    check_norms(stack, x, gammas, betas)
    refuse(x.shape[0] < 1, f"x: expected a batch of at least 1, got shape {list(x.shape)}")
    refuse(
        not (eps >= 0 and math.isfinite(eps)), f"eps: expected a number of at least 0, got {eps}"
    )
    refuse(recompute and stack.depth == 1, "recompute: expected units of 2 levels or more, got 1")
    activation, out_activation, residual_activation = names
    check_activations(
        activation=activation,
        out_activation=out_activation,
        residual_activation=residual_activation,
    )


def _check_backward(
    grad, x, weights, gammas, betas, pre_norms, stats, units, stride, dilation, shuffle, *names
):
    stack = conv_stack(units, len(weights))
    sizes = check_conv2d(stack, x, weights, [], None, stride, dilation)
    check_norms(stack, x, gammas, betas)
    check_levels("pre_norms", pre_norms, stack.depth)
    for level, z in enumerate(pre_norms):
        check_like(f"pre_norms[{level}]", z, x)
        recomputed = stack.depth > 1 and level == 0 and z.dim() == 1 and z.shape == (0,)
        if not recomputed:
            expected = (x.shape[0], stack.channels[level + 1], *sizes[level])
            check_shape(f"pre_norms[{level}]", z.shape, expected)
    check_device("stats", stats, x)
    refuse(
        stats.dtype != _stats_dtype(x),
        f"stats: expected dtype {_stats_dtype(x)}, got {stats.dtype}",
    )
    check_shape("stats", stats.shape, (3, sum(stack.channels[1:])))
    check_like("grad", grad, x)
    check_shape("grad", grad.shape, (x.shape[0], stack.channels[-1], *sizes[-1]))
    activation, out_activation = names
    check_activations(activation=activation, out_activation=out_activation)


def _fake_forward(
    x, weights, gammas, betas, residual, units, stride, dilation, shuffle, eps, recompute, *names
):
    depth = len(weights)
    channels = _widths(units, depth)
    sizes = level_sizes(x.shape, units, depth, stride, dilation)
    pre_norms = [
        empty_like_format(x, (x.shape[0], c, h, w))
        for c, (h, w) in zip(channels, sizes, strict=True)
    ]
    if recompute:
        pre_norms[0] = x.new_empty(0)
    stats = x.new_empty((3, sum(channels)), dtype=_stats_dtype(x))
    return torch.empty_like(pre_norms[-1]), pre_norms, stats


def _fake_backward(grad, x, weights, gammas, betas, pre_norms, stats, units, *config):
    affine = stats.new_empty((2, stats.shape[1]))
    grad_weights = [w.new_empty(w.shape) for w in weights]
    return empty_like_format(x, x.shape), grad_weights, affine


def _save(ctx, inputs, output):
    x, weights, gammas, betas, residual, *config, _, _ = inputs[:11]
    ctx.units, ctx.stride, ctx.dilation, ctx.shuffle = config
    names = inputs[11:]
    out, pre_norms, stats = output
    ctx.depth = len(weights)
    ctx.activation, ctx.out_activation = names[:2]
    ctx.residual_activation = None if residual is None else names[2]
    kept = out if ctx.residual_activation not in (None, "identity") else None
    ctx.save_for_backward(x, kept, stats, *weights, *gammas, *betas, *pre_norms)


def _backward(ops, ctx, grad, *_):
    # Statistics and pre-norm outputs are by-products; nothing differentiates through them.
    x, output, stats, *rest = ctx.saved_tensors
    d = ctx.depth
    weights, gammas, betas, pre_norms = (rest[i * d : (i + 1) * d] for i in range(4))
    grad_residual = None
    if ctx.residual_activation is not None:
        grad = grad_residual = activation_grad(ctx.residual_activation, grad, output)
    grad_x, grad_weights, grad_affine = ops.stacked_unit_conv2d_train_backward(
        grad, x, weights, gammas, betas, pre_norms, stats,
        ctx.units, ctx.stride, ctx.dilation, ctx.shuffle, ctx.activation, ctx.out_activation,
    )  # fmt: skip
    channels = _widths(ctx.units, d)
    grad_gammas, grad_betas = (
        [g.to(p.dtype) for g, p in zip(row.split(channels), like, strict=True)]
        for row, like in zip(grad_affine, (gammas, betas), strict=True)
    )
    return grad_x, grad_weights, grad_gammas, grad_betas, grad_residual, *[None] * 9


def _save_nothing(ctx, inputs, output):
    pass


def _no_second_derivative(ops, ctx, *grads):
    raise RuntimeError(
        "stacked_unit_conv2d_train has no second derivative: run it in a block of backend('torch') "
        "or backend('reference') where a gradient of a gradient is needed in training mode"
    )


def _flops_forward(
    x_shape, weight_shapes, gammas, betas, residual, units, stride, dilation, *args, **kwargs
):
    return unit_flops(x_shape, units, len(weight_shapes), stride, dilation)


def _flops_backward(
    grad, x_shape, weight_shapes, g, b, p, stats, units, stride, dilation, *args, **kwargs
):
    return 2 * unit_flops(x_shape, units, len(weight_shapes), stride, dilation)


OPERATORS = (
    Operator(
        "stacked_unit_conv2d_train",
        _check_forward,
        _fake_forward,
        _save,
        _backward,
        _flops_forward,
    ),
    Operator(
        "stacked_unit_conv2d_train_backward",
        _check_backward,
        _fake_backward,
        _save_nothing,
        _no_second_derivative,
        _flops_backward,
    ),
)
