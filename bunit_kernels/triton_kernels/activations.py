"""The activations of :mod:`bunit_kernels.activations` inside kernels, in float32.

NaN stays NaN: comparisons are written so that a NaN takes the branch that keeps it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(x, NAME: tl.constexpr):
    """``NAME``'s value at ``x``."""
    if NAME == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif NAME == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif NAME == "leaky_relu":
        x = tl.where(x < 0, 0.01 * x, x)
    elif NAME == "gelu":
        x = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "silu":
        x = x / (1 + tl.exp(-x))
    elif NAME == "hardswish":
        y = x + 3
        x = x * tl.where(y < 0, 0.0, tl.where(y > 6, 6.0, y)) / 6
    else:
        tl.static_assert(NAME == "identity")
    return x


@triton.jit
def activation_grad(grad, x, NAME: tl.constexpr):
    """``grad`` times ``NAME``'s derivative at ``x``: 0 where the derivative is, be the gradient NaN
    or not, as in PyTorch's backward operators."""
    if NAME == "relu":
        grad = tl.where(x <= 0, 0.0, grad)
    elif NAME == "relu6":
        grad = tl.where((x <= 0) | (x >= 6), 0.0, grad)
    elif NAME == "leaky_relu":
        grad = tl.where(x > 0, grad, 0.01 * grad)
    elif NAME == "gelu":
        density = tl.exp(-0.5 * x * x) * 0.3989422804014327
        grad = grad * (0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density)
    elif NAME == "silu":
        s = 1 / (1 + tl.exp(-x))
        grad = grad * (s * (1 + x * (1 - s)))
    elif NAME == "hardswish":
        grad = tl.where(x <= -3, 0.0, tl.where(x >= 3, grad, grad * (x / 3 + 0.5)))
    else:
        tl.static_assert(NAME == "identity")
    return grad
