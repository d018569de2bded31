"""Whole convolutional units with batch statistics: a level's convolution takes its own moments, and
normalises and activates what the level before it left, as it loads that."""

from __future__ import annotations

import torch

from ..ops._shapes import conv_level
from . import conv2d
from .norm import Norm, apply_norm, merge_moments, norm_grad
from .unit_conv2d import check_unshuffled


def _forward(
    x, weights, gammas, betas, residual, units, stride, dilation, shuffle, eps, recompute,
    activation, out_activation, residual_activation,
):  # fmt: skip
    check_unshuffled(shuffle)
    if recompute:
        raise ValueError("recompute is for the CPU: Triton's kernels keep what they made")
    channels = [len(gamma) for gamma in gammas]
    stats = torch.empty((3, sum(channels)), dtype=torch.float32, device=x.device)
    own = stats.split(channels, 1)
    y, norm, pre_norms = x, None, []
    for i, weight in enumerate(weights):
        rows = conv_level(units, len(weights), i)
        y, moments = conv2d.level(
            y, weight, None, rows, stride if i == 0 else 1, dilation, "identity", norm=norm,
            moments=True, like=x,
        )  # fmt: skip
        pre_norms.append(y)
        if y.numel() == 0:
            continue
        merge_moments(moments, own[i], eps)
        name = out_activation if i == len(weights) - 1 else activation
        norm = _norm(own[i], gammas[i], betas[i], name)
    if y.numel() == 0:
        return torch.empty_like(y), pre_norms, stats.fill_(float("nan"))
    return apply_norm(y, norm, residual, residual_activation), pre_norms, stats


def _norm(stats, gamma, beta, activation):
    mean, inv_std, *_ = stats
    return Norm(mean, gamma.float() * inv_std, beta.float().contiguous(), activation)


def _backward(
    grad, x, weights, gammas, betas, pre_norms, stats, units, stride, dilation, shuffle,
    activation, out_activation,
):  # fmt: skip
    check_unshuffled(shuffle)
    depth = len(weights)
    channels = [len(gamma) for gamma in gammas]
    own = stats.split(channels, 1)
    affine = torch.empty((2, sum(channels)), dtype=torch.float32, device=x.device)
    sums = affine.split(channels, 1)
    names = [activation] * (depth - 1) + [out_activation]
    norms = [_norm(*of, name) for *of, name in zip(own, gammas, betas, names, strict=True)]
    grad_weights = [None] * depth
    for i in reversed(range(depth)):
        rows, step = conv_level(units, depth, i), stride if i == 0 else 1
        before, norm = (x, None) if i == 0 else (pre_norms[i - 1], norms[i - 1])
        if grad.numel() == 0:
            sums[i].zero_()
        else:
            z = pre_norms[i]
            dense = z.is_contiguous() or z.is_contiguous(memory_format=torch.channels_last)
            grad = norm_grad(grad, z if dense else z.contiguous(), norms[i], own[i][1], sums[i])
        grad_weights[i], _ = conv2d.grad_weight(
            grad, before, weights[i].shape, rows, step, dilation, norm=norm, bias=False
        )
        grad = conv2d.grad_input(grad, weights[i], before.shape, rows, step, dilation, like=x)
    return grad, grad_weights, affine


OPERATORS = {
    "stacked_unit_conv2d_train": _forward,
    "stacked_unit_conv2d_train_backward": _backward,
}
