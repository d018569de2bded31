"""Convolutional levels as the operators of csrc/schema.cpp, and with norms for training."""

from __future__ import annotations

import torch
import triton

from ..ops._shapes import conv_rows, conv_size, empty_like_format
from . import conv_grad_weight, conv_level
from .tf32 import convolutions_allow_tf32
from .work import conv_work


def level(
    x, weight, bias, units, stride, dilation, activation, *, norm=None, moments=False,
    residual=None, residual_activation="identity", like=None, allows_tf32=convolutions_allow_tf32,
):  # fmt: skip
    """One level: convolution, bias, activation, and the residual with its activation.

    ``norm`` is applied to ``x`` as it is loaded, before the padding. With ``moments`` also returns
    those of the output before ``activation``: float32 [3, tiles, channels], each tile's count, mean
    and sum of squared distances from that mean. The output has the memory format of ``like``, by
    default that of ``x``: what lies between levels may have one channel, which shows none.
    ``allows_tf32`` tells whether products of float32 may be TF32's, here and below.
    """
    work, tf32 = conv_work(units, x.device), allows_tf32()
    _, k, pad, _ = next(conv_rows(units, 1))
    height, width = (conv_size(s, k, pad, stride, dilation) for s in x.shape[2:])
    y = empty_like_format(
        x if like is None else like, (x.shape[0], sum(_outs(units)), height, width)
    )
    dot = conv_level.uses_dot(work, x.dtype, tf32)
    parts = triton.cdiv(x.shape[0] * height * width, conv_level.moments_block(dot))
    shape = (3, parts, y.shape[1])
    found = torch.empty(shape, dtype=torch.float32, device=x.device) if moments else None
    if y.numel() > 0:
        residual = None if residual is None else _strided_like(residual, y)
        bias = None if bias is None else bias.contiguous()
        conv_level.launch(
            _usable(x), weight.contiguous(), bias, y, work, stride, dilation, activation, tf32=tf32,
            norm=norm, moments=found, residual=residual, residual_activation=residual_activation,
        )  # fmt: skip
    return (y, found) if moments else y


def grad_input(
    grad, weight, input_size, units, stride, dilation, *, like=None,
    allows_tf32=convolutions_allow_tf32,
):  # fmt: skip
    """Gradient of a level's input, in the memory format of ``like``, by default ``grad``'s."""
    grad_x = empty_like_format(grad if like is None else like, input_size)
    if grad.numel() == 0:
        return grad_x.zero_()
    if grad_x.numel() > 0:
        conv_level.launch(
            _usable(grad), weight.contiguous(), None, grad_x, conv_work(units, grad.device), stride,
            dilation, "identity", tf32=allows_tf32(), transposed=True,
        )  # fmt: skip
    return grad_x


def grad_weight(
    grad, x, weight_shape, units, stride, dilation, *, norm=None, bias=True,
    allows_tf32=convolutions_allow_tf32,
):  # fmt: skip
    """Gradients of a level's weight and, with ``bias``, of its bias; ``norm`` as for ``level``."""
    of_weight = x.new_empty(weight_shape)
    of_bias = x.new_empty((grad.shape[1],)) if bias else None
    if grad.numel() == 0:
        return of_weight.zero_(), of_bias.zero_() if bias else None
    conv_grad_weight.launch(
        _usable(grad), _usable(x), of_weight, of_bias, conv_work(units, x.device), stride, dilation,
        tf32=allows_tf32(), norm=norm,
    )  # fmt: skip
    return of_weight, of_bias


def _outs(units):
    return (count * widths[1] for count, _, _, widths in conv_rows(units, 1))


def _usable(x):
    """The kernels take any strides; those of an expanded tensor would be read again and again."""
    return x.contiguous() if 0 in x.stride() and x.numel() > 1 else x


def _strided_like(x, y):
    """``x`` in the strides of ``y``."""
    return x if x.stride() == y.stride() else torch.empty_like(y).copy_(x)


def _forward(x, weight, bias, units, stride, dilation, activation):
    return level(x, weight, bias, units, stride, dilation, activation)


def _backward(grad, x, weight, units, stride, dilation):
    grad_x = grad_input(grad, weight, x.shape, units, stride, dilation)
    return grad_x, *grad_weight(grad, x, weight.shape, units, stride, dilation)


OPERATORS = {
    "stacked_conv2d": _forward,
    "stacked_conv2d_grad_input": grad_input,
    "stacked_conv2d_grad_weight": grad_weight,
    "stacked_conv2d_backward": _backward,
}
