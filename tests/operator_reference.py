"""What the operators compute, from nothing but their arguments: a loop over units in float64, and
autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bunit_kernels.activations import activate
from bunit_kernels.ops._shapes import conv_level, conv_rows, linear_level, linear_rows
from bunit_kernels.shuffle import round_robin


def level_conv2d(x: Tensor, weight: Tensor, bias, units, stride: int, dilation: int) -> Tensor:
    """``x`` [N, C, H, W]; ``weight`` and ``bias`` of any shape, the units' one after another."""
    weight, outs, channel, begin = weight.flatten(), [], 0, 0
    for count, k, pad, (c_in, c_out) in conv_rows(units, 1):
        size = c_out * c_in * k * k
        for _ in range(count):
            own = weight[begin : begin + size].view(c_out, c_in, k, k)
            part = x[:, channel : channel + c_in]
            outs.append(F.conv2d(part, own, stride=stride, padding=pad, dilation=dilation))
            channel, begin = channel + c_in, begin + size
    y = torch.cat(outs, 1)
    return y if bias is None else y + bias.flatten().view(1, -1, 1, 1)


def level_linear(x: Tensor, weight: Tensor, bias, units) -> Tensor:
    """The same of rows ``x`` [..., C]."""
    weight, outs, channel, begin = weight.flatten(), [], 0, 0
    for count, (c_in, c_out) in linear_rows(units, 1):
        for _ in range(count):
            own = weight[begin : begin + c_out * c_in].view(c_out, c_in)
            outs.append(x[..., channel : channel + c_in] @ own.T)
            channel, begin = channel + c_in, begin + c_out * c_in
    y = torch.cat(outs, -1)
    return y if bias is None else y + bias.flatten()


def unit_conv2d(
    x, weights, norms, residual, units, stride, dilation, shuffle, hidden, out, after
) -> Tensor:
    """All levels; ``norms[i]`` is what follows level ``i``, a function of its output."""
    depth = len(weights)
    for i, weight in enumerate(weights):
        rows = conv_level(units, depth, i)
        x = norms[i](level_conv2d(x, weight, None, rows, stride if i == 0 else 1, dilation))
        x = activate(hidden if i < depth - 1 else out, x)
    if shuffle:
        widths = [row[-1] for n, _, _, row in conv_rows(units, depth) for _ in range(n)]
        x = x[:, list(round_robin(widths))]
    return x if residual is None else activate(after, x + residual)


def unit_linear(x, weights, biases, units, hidden, out) -> Tensor:
    depth = len(weights)
    for i, weight in enumerate(weights):
        rows = linear_level(units, depth, i)
        x = level_linear(x, weight, biases[i] if biases else None, rows)
        x = activate(hidden if i < depth - 1 else out, x)
    return x


def expected(name: str, args: tuple) -> list[Tensor]:
    """The tensors that operator ``name`` returns for right arguments, in float64; of the training
    operator the first alone. Its backward operator's pre-norm outputs and statistics are taken to
    be those that its other arguments give."""
    args = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.detach().double().contiguous(), list(args)
    )
    if name == "stacked_conv2d":
        *tensors, units, stride, dilation, activation = args
        return [activate(activation, level_conv2d(*tensors, units, stride, dilation))]
    if name == "stacked_linear":
        *tensors, units, activation = args
        return [activate(activation, level_linear(*tensors, units))]
    if name == "stacked_unit_conv2d":
        x, weights, biases, *rest = args
        return [unit_conv2d(x, weights, plus(biases, len(weights)), *rest)]
    if name == "stacked_unit_linear":
        return [unit_linear(*args)]
    if name == "stacked_unit_conv2d_train":
        x, weights, gammas, betas, residual, units, stride, dilation, shuffle, eps, _, *names = args
        norms = batch_norms(gammas, betas, eps)
        return [unit_conv2d(x, weights, norms, residual, units, stride, dilation, shuffle, *names)]
    return gradients(name, args)


def gradients(name: str, args: list) -> list[Tensor]:
    grad, *rest = args
    if name == "stacked_conv2d_grad_input":
        weight, size, *config = rest
        x = grad.new_zeros(size).requires_grad_()
        return derivatives(level_conv2d(x, weight, None, *config), grad, [x])
    if name == "stacked_linear_grad_input":
        weight, units = rest
        channels = sum(count * widths[0] for count, widths in linear_rows(units, 1))
        x = grad.new_zeros((*grad.shape[:-1], channels)).requires_grad_()
        return derivatives(level_linear(x, weight, None, units), grad, [x])
    if name in ("stacked_conv2d_grad_weight", "stacked_linear_grad_weight"):
        x, shape, *config = rest
        level = level_conv2d if "conv" in name else level_linear
        channels = 1 if "conv" in name else -1
        weight = grad.new_zeros(shape).requires_grad_()
        bias = grad.new_zeros(grad.shape[channels]).requires_grad_()
        return derivatives(level(x, weight, bias, *config), grad, [weight, bias])
    if name == "stacked_conv2d_backward":
        x, weight, *config = rest
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        leaves.append(grad.new_zeros(grad.shape[1]).requires_grad_())
        return derivatives(level_conv2d(*leaves, *config), grad, leaves)
    if name == "stacked_unit_linear_backward":
        x, weights, biases, *config = rest
        leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
        return derivatives(unit_linear(x, weights, biases, *config), grad, leaves)
    x, weights, gammas, betas, _, _, units, stride, dilation, shuffle, *names = rest
    leaves = [t.requires_grad_() for t in (x, *weights, *gammas, *betas)]
    y = unit_conv2d(
        x, weights, batch_norms(gammas, betas, 1e-5), None, units, stride, dilation, shuffle,
        *names, "identity",
    )  # fmt: skip
    grad_x, *grads = derivatives(y, grad, leaves)
    depth = len(weights)
    affine = [torch.cat([g.flatten() for g in grads[i * depth : (i + 1) * depth]]) for i in (1, 2)]
    return [grad_x, *grads[:depth], torch.stack(affine)]


def derivatives(y: Tensor, grad: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(y, leaves, grad, materialize_grads=True))


def plus(biases, depth):
    def after(i):
        return lambda z: z + biases[i].flatten().view(1, -1, 1, 1) if biases else z

    return [after(i) for i in range(depth)]


def batch_norms(gammas, betas, eps):
    def after(gamma, beta):
        def norm(z):
            mean = z.mean((0, 2, 3), keepdim=True)
            var = z.var((0, 2, 3), correction=0, keepdim=True)
            zhat = (z - mean) / (var + eps).sqrt()
            return zhat * gamma.flatten().view(1, -1, 1, 1) + beta.flatten().view(1, -1, 1, 1)

        return norm

    return [after(gamma, beta) for gamma, beta in zip(gammas, betas, strict=True)]
