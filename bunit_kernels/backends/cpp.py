"""C++ kernels on all cores (csrc/cpu)."""

from __future__ import annotations

import torch

from ..layout import linear_rows
from ..ops import CPU_MISSING
from ..ops.unit_conv2d_train import unit_conv2d_train
from .base import BatchStats

ops = torch.ops.bunit_kernels

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Cpp:
    name = "cpp"

    def why_not(self, device, dtype):
        if CPU_MISSING is not None:
            return CPU_MISSING
        if device is not None and device.type != "cpu":
            return f"it runs on CPU tensors, got one on {device}"
        if dtype is not None and dtype not in DTYPES:
            return f"it takes {', '.join(map(str, DTYPES))}, got {dtype}"
        return None

    def conv2d(self, x, weight, bias, geometry, activation):
        return ops.stacked_conv2d(
            x, weight, bias, geometry.rows, geometry.stride, geometry.dilation, activation
        )

    def linear(self, x, weight, bias, layout, activation):
        return ops.stacked_linear(x, weight, bias, linear_rows(layout), activation)

    def unit_conv2d(self, x, weights, biases, geometry, activations, residual):
        return ops.stacked_unit_conv2d(
            x, weights, biases, residual, geometry.rows, geometry.stride, geometry.dilation,
            activations.hidden, activations.out, activations.residual,
        )  # fmt: skip

    def unit_linear(self, x, weights, biases, layout, activations):
        return ops.stacked_unit_linear(
            x, weights, biases, linear_rows(layout), activations.hidden, activations.out
        )

    def unit_conv2d_train(self, x, weights, gammas, betas, geometry, activations, eps, residual):
        out, stats = unit_conv2d_train(
            ops, x, weights, gammas, betas, residual, geometry.rows, geometry.stride,
            geometry.dilation, eps, activations.hidden, activations.out, activations.residual,
        )  # fmt: skip
        channels = [level.out_channels for level in geometry.layout.levels]
        mean, _, var = stats.detach()
        means, variances = mean.split(channels), var.split(channels)
        return out, list(map(BatchStats, means, variances))
