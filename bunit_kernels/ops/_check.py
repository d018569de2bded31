"""What operators are given, checked where tensors may have no data: by the fake kernels, and before
kernels that are not in C++ (csrc/check.h has the checks of those that are; tests compare the two).

Rows of units, stride, dilation, sizes, dtypes and devices. Each refusal is a ``RuntimeError`` that
names the argument, what was expected and what came. A size that a compiler left open is refused
only where no value of it would do, so that no guard is put on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._tensor_format import DTYPES
from ..activations import ACTIVATIONS
from ._shapes import conv_rows, conv_size, linear_rows

MAX_DEPTH = 8
MAX_UNITS = 2**20
MAX_KERNEL = 2**15 - 1  # and padding, and dilation
MAX_STRIDE = 1024
MAX_INT = 2**31 - 1  # channels of a side, taps of a channel
MAX_ELEMENTS = 2**62  # of a level's weight


def refuse(condition, message: str) -> None:
    """``RuntimeError`` where ``condition`` (a bool, or of open sizes) is certainly true."""
    if isinstance(condition, torch.SymBool):
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        condition = statically_known_true(condition)
    if condition:
        raise RuntimeError(message)


# --- units ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Units as their rows say: of each level its channels (with the input's, one more), and the
    elements of its weight. ``kernels`` are the different (kernel, padding)."""

    depth: int
    channels: tuple[int, ...]
    weight_sizes: tuple[int, ...]
    kernels: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=256)
def _stack(units: tuple[int, ...], depth: int, conv: bool) -> Stack:
    refuse(
        not 1 <= depth <= MAX_DEPTH,
        f"weights: expected 1 to {MAX_DEPTH} tensors, one a level, got {depth}",
    )
    step = depth + (4 if conv else 2)
    refuse(
        len(units) == 0 or len(units) % step != 0,
        f"units: expected rows of {step} ints for {depth} levels, got {len(units)} ints",
    )
    if conv:
        rows = list(conv_rows(units, depth))
    else:
        rows = [(count, 1, 0, widths) for count, widths in linear_rows(units, depth)]
    channels, weight_sizes, total = [0] * (depth + 1), [0] * depth, 0
    for count, k, pad, widths in rows:
        total += count
        refuse(
            count < 1 or total > MAX_UNITS,
            f"units: expected a count of at least 1 and at most {MAX_UNITS} units together, "
            f"got a row of {count}",
        )
        refuse(not 1 <= k <= MAX_KERNEL, f"units: expected a kernel of 1 to {MAX_KERNEL}, got {k}")
        refuse(
            not 0 <= pad <= MAX_KERNEL, f"units: expected a padding of 0 to {MAX_KERNEL}, got {pad}"
        )
        for level, width in enumerate(widths):
            refuse(
                not 1 <= width <= MAX_INT, f"units: expected widths of 1 to {MAX_INT}, got {width}"
            )
            channels[level] += count * width
            refuse(
                width * k * k > MAX_INT or channels[level] > MAX_INT,
                f"units: more than {MAX_INT} channels on a side, or taps of a channel, in a row "
                f"of count {count}, kernel {k}, width {width}",
            )
        for level in range(depth):
            weight_sizes[level] += count * k * k * widths[level] * widths[level + 1]
            refuse(
                weight_sizes[level] > MAX_ELEMENTS,
                f"units: the weight of level {level + 1} has more than 2^62 elements",
            )
    kernels = tuple(dict.fromkeys((k, pad) for _, k, pad, _ in rows))
    return Stack(depth, tuple(channels), tuple(weight_sizes), kernels)


def conv_stack(units: Sequence[int], depth: int) -> Stack:
    return _stack(tuple(units), depth, True)


def linear_stack(units: Sequence[int], depth: int) -> Stack:
    return _stack(tuple(units), depth, False)


# --- tensors and names ---------------------------------------------------------------------------


def check_activations(**names: str) -> None:
    for argument, name in names.items():
        refuse(
            name not in ACTIVATIONS,
            f'{argument}: expected one of {", ".join(ACTIVATIONS)}, got "{name}"',
        )


def check_dtype(name: str, t: Tensor) -> None:
    refuse(
        t.dtype not in DTYPES,
        f"{name}: expected float32, float64, bfloat16 or float16, got {t.dtype}",
    )


def check_device(name: str, t: Tensor, like: Tensor) -> None:
    refuse(
        t.device != like.device,
        f"{name}: expected a tensor on {like.device}, got one on {t.device}",
    )


def check_like(name: str, t: Tensor, like: Tensor) -> None:
    """On the device of ``like``, of its dtype."""
    check_device(name, t, like)
    refuse(t.dtype != like.dtype, f"{name}: expected dtype {like.dtype}, got {t.dtype}")


def check_numel(name: str, t: Tensor, count: int) -> None:
    refuse(
        t.numel() != count, f"{name}: expected {count} elements to fit the units, got {t.numel()}"
    )


def check_values(name: str, t: Tensor, like: Tensor, count: int) -> None:
    """What is converted: on the device of ``like``, of any dtype that kernels take."""
    check_device(name, t, like)
    check_dtype(name, t)
    check_numel(name, t, count)


def check_shape(name: str, shape: Sequence[int], expected: Sequence[int | None]) -> None:
    """``None`` may be any size."""
    text = ", ".join("..." if e is None else str(e) for e in expected)
    message = f"{name}: expected a tensor of shape [{text}], got {list(shape)}"
    refuse(len(shape) != len(expected), message)
    for size, wanted in zip(shape, expected, strict=True):
        if wanted is not None:
            refuse(size != wanted, message)


def check_levels(name: str, tensors: Sequence[Tensor], depth: int, or_none: bool = False) -> None:
    refuse(
        len(tensors) != depth and not (or_none and len(tensors) == 0),
        f"{name}: expected {'none or ' if or_none else ''}{depth} tensors, one a level, "
        f"got {len(tensors)}",
    )


def check_weight_shape(shape: Sequence[int], count: int) -> None:
    refuse(
        min(shape, default=1) < 1 or math.prod(shape) != count,
        f"weight_shape: expected a shape of {count} elements to fit the units, got {list(shape)}",
    )


def check_parameters(stack: Stack, x: Tensor, weights, biases, listed: bool) -> None:
    """``listed``: the operator takes lists, and not one weight and one bias."""
    check_levels("biases", biases, stack.depth, or_none=True)
    for level, weight in enumerate(weights):
        name = f"weights[{level}]" if listed else "weight"
        check_like(name, weight, x)
        check_numel(name, weight, stack.weight_sizes[level])
    for level, bias in enumerate(biases):
        name = f"biases[{level}]" if listed else "bias"
        check_values(name, bias, x, stack.channels[level + 1])


# --- geometry ------------------------------------------------------------------------------------


def check_geometry(
    stack: Stack, name: str, size: Sequence[int], stride: int, dilation: int
) -> list[list[int]]:
    """Height and width after each level, which are the same for all units.

    Args:
        size: height and width of argument ``name``.
    """
    refuse(not 1 <= stride <= MAX_STRIDE, f"stride: expected 1 to {MAX_STRIDE}, got {stride}")
    refuse(not 1 <= dilation <= MAX_KERNEL, f"dilation: expected 1 to {MAX_KERNEL}, got {dilation}")
    for s in size:
        message = f"{name}: expected a height and a width of 1 to {MAX_INT}, got {list(size)}"
        refuse(s < 1, message)
        refuse(s > MAX_INT, message)
    sizes: list[list[int]] = []
    for k, pad in stack.kernels:
        made = list(size)
        for level in range(stack.depth):
            before = made
            made = [conv_size(s, k, pad, stride if level == 0 else 1, dilation) for s in before]
            for s in made:
                refuse(
                    s < 1,
                    f"units: level {level + 1} gets {before[0]}x{before[1]} pixels, too few for a "
                    f"kernel of {k} with padding {pad} and dilation {dilation}",
                )
            if level == len(sizes):
                sizes.append(made)
            for s, expected in zip(made, sizes[level], strict=True):
                refuse(
                    s != expected,
                    f"units: expected outputs of one size, got {sizes[level]} and {made} after "
                    f"level {level + 1}",
                )
    return sizes


# --- operators -----------------------------------------------------------------------------------


def check_conv2d(
    stack: Stack, x, weights, biases, residual, stride, dilation, *, listed=True
) -> list[list[int]]:
    """Forward of a level or of whole units; height and width after each level."""
    check_dtype("x", x)
    check_shape("x", x.shape, (None, stack.channels[0], None, None))
    check_parameters(stack, x, weights, biases, listed)
    sizes = check_geometry(stack, "x", x.shape[2:], stride, dilation)
    if residual is not None:
        check_like("residual", residual, x)
        check_shape("residual", residual.shape, (x.shape[0], stack.channels[-1], *sizes[-1]))
    return sizes


def check_conv2d_grad(stack: Stack, name, input_size, grad, stride, dilation) -> None:
    """A level's output gradient for an input of a size, that of argument ``name``."""
    (out,) = check_geometry(stack, name, input_size[2:], stride, dilation)
    check_shape("grad", grad.shape, (input_size[0], stack.channels[1], *out))


def check_norms(stack: Stack, x, gammas, betas) -> None:
    for name, tensors in (("gammas", gammas), ("betas", betas)):
        check_levels(name, tensors, stack.depth)
        for level, t in enumerate(tensors):
            check_values(f"{name}[{level}]", t, x, stack.channels[level + 1])


def check_linear(stack: Stack, x, weights, biases, *, listed=True) -> None:
    check_dtype("x", x)
    check_rows("x", x, stack.channels[0])
    check_parameters(stack, x, weights, biases, listed)


def check_rows(name: str, t: Tensor, channels: int) -> None:
    """``[..., channels]``"""
    message = f"{name}: expected a tensor of shape [..., {channels}], got {list(t.shape)}"
    refuse(t.dim() < 1, message)
    refuse(t.shape[-1] != channels, message)


def check_linear_grad(stack: Stack, grad, x) -> None:
    check_like("grad", grad, x)
    check_shape("grad", grad.shape, (*x.shape[:-1], stack.channels[-1]))
