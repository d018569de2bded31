"""Tensors for a case, and the package's operations run on them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection

import torch
from reference_cases import Case, ConvCase, LinearCase, layout_of
from reference_loop import Tensors, condition
from torch import Tensor

from bunit_kernels import functional as F

#: What drawn tensors keep to (see ``Condition``), so that results can be compared.
KINK_DISTANCE, SPREAD = 1e-5, 0.1


class NotComparable(AssertionError):
    """A case whose every draw has a value at a kink, or a channel that is all but constant."""


def draw(
    case: Case,
    seed: int | str = 0,
    *,
    norms: bool = False,
    comparable: bool = True,
    tries: int = 1000,
    spread: float = SPREAD,
) -> Tensors:
    """Float64 tensors for ``case``: ``x``, ``weights``, ``biases``, ``gammas`` and ``betas`` (with
    ``norms``), ``residual``, and ``grad``, a gradient of the output.

    Where they are to be ``comparable``, draws again until no pre-activation is at a kink and no
    channel that is to be normalised is all but constant (has less than ``spread``). Among many
    thousand values some always are.

    Raises:
        NotComparable: after so many ``tries``.
    """
    numbers = random.Random(f"{seed} {case}")
    for _ in range(tries if comparable else 1):
        generator = torch.Generator().manual_seed(numbers.randrange(2**62))
        tensors = _draw(case, generator, norms)
        if not comparable:
            return tensors
        found = condition(case, tensors)
        if found.kink_distance > KINK_DISTANCE and found.spread > spread:
            return tensors
    raise NotComparable(f"no draw for {case} can be compared: {found}")


def _draw(case: Case, generator: torch.Generator, norms: bool) -> Tensors:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    levels = layout_of(case).levels
    weights, channels = [], [level.out_channels for level in levels]
    for level in levels:
        shapes = [unit.weight_shape for unit in level.units]
        parts = [normal(*shape) / math.sqrt(math.prod(shape[1:])) for shape in shapes]
        weights.append(level.pack(parts))
    return {
        "x": [laid_out(normal(*case.input_shape), case.layout)],
        "weights": weights,
        "biases": [normal(c) / 2 for c in channels] if case.bias and not norms else [],
        "gammas": [1 + normal(c) / 4 for c in channels] if norms else [],
        "betas": [normal(c) / 2 for c in channels] if norms else [],
        "residual": [laid_out(normal(*case.output_shape), case.grad_layout)]
        if case.residual
        else [],
        "grad": [laid_out(normal(*case.output_shape), case.grad_layout)],
    }


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` (for ``"expanded"`` those of its first image) in other strides."""
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "expanded" and x.dim() > 1 and x.shape[0] > 0:
        return x[:1].expand_as(x)
    if layout == "window":  # what is left of a larger tensor whose edges were cut off
        larger = x.new_full([n + 2 for n in x.shape], math.nan)
        window = larger[(slice(1, -1),) * x.dim()]
        return window.copy_(x)
    if layout == "loose":
        x = x.contiguous()
        strides = [
            s if n > 1 else 5 + i for i, (n, s) in enumerate(zip(x.shape, x.stride(), strict=True))
        ]
        return x.as_strided(x.shape, strides)
    return x


def converted(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The same values rounded to ``dtype``, in the strides they have."""
    return _each_storage(tensors, lambda t: t.to(dtype))


def on_device(tensors: Tensors, device: str) -> Tensors:
    """The same on another device, in the strides they have."""
    return _each_storage(tensors, lambda t: t.to(device))


def _each_storage(tensors: Tensors, change: Callable[[Tensor], Tensor]) -> Tensors:
    """Applies ``change`` to what tensors are views of. PyTorch's own conversions keep the strides
    of dense tensors alone: of a slice they make a tensor without gaps."""
    return {name: [_by_storage(t, change) for t in ts] for name, ts in tensors.items()}


def _by_storage(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    if t.numel() == 0:
        return change(t)
    # All elements from the first to the last, whether the tensor has them or not.
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    start = t.storage_offset()
    whole = change(t.as_strided((start + last + 1,), (1,), 0))
    return whole.as_strided(t.shape, t.stride(), start)


def outputs_and_gradients(
    op, case: Case, tensors: Tensors, wanted: Collection[str] | None = None
) -> dict[str, Tensor]:
    """``op``'s output, and the gradient with respect to each input (or to those ``wanted``, of
    ``"x[0]"``, ``"weights[1]"``, ..., the others not asking for one), under the backend in force.
    """
    arguments = {name: [t.detach() for t in ts] for name, ts in tensors.items()}
    leaves = {
        f"{name}[{i}]": t
        for name, ts in arguments.items()
        if name != "grad"
        for i, t in enumerate(ts)
    }
    leaves = {n: t.requires_grad_() for n, t in leaves.items() if wanted is None or n in wanted}
    y = op(case, arguments)
    gradients = torch.autograd.grad(y, list(leaves.values()), tensors["grad"][0]) if leaves else ()
    named = {f"grad of {n}": g for n, g in zip(leaves, gradients, strict=True)}
    return {"output": y.detach(), **named}


def conv2d(case: ConvCase, t: Tensors) -> Tensor:
    bias = t["biases"][0] if t["biases"] else None
    return F.stacked_conv2d(
        t["x"][0], t["weights"][0], bias, units=case.geometry, activation=case.out_activation
    )


def linear(case: LinearCase, t: Tensors) -> Tensor:
    bias = t["biases"][0] if t["biases"] else None
    return F.stacked_linear(
        t["x"][0], t["weights"][0], bias, units=case.stack, activation=case.out_activation
    )


def unit_conv2d(case: ConvCase, t: Tensors) -> Tensor:
    return F.stacked_unit_conv2d(
        t["x"][0], t["weights"], t["biases"], units=case.geometry, **_end(case, t)
    )


def unit_linear(case: LinearCase, t: Tensors) -> Tensor:
    names = {"activation": case.activation, "out_activation": case.out_activation}
    return F.stacked_unit_linear(t["x"][0], t["weights"], t["biases"], units=case.stack, **names)


def unit_conv2d_train(case: ConvCase, t: Tensors) -> Tensor:
    return unit_conv2d_train_with_stats(case, t)[0]


def unit_conv2d_train_with_stats(case: ConvCase, t: Tensors):
    return F.stacked_unit_conv2d_train(
        t["x"][0], t["weights"], t["gammas"], t["betas"], units=case.geometry, **_end(case, t)
    )


def _end(case: ConvCase, t: Tensors) -> dict:
    return {
        "activation": case.activation,
        "out_activation": case.out_activation,
        "residual": t["residual"][0] if case.residual else None,
        "residual_activation": case.residual or "identity",
    }


def roundings(case: Case) -> int:
    """How often a value is stored on its way through the layer and back: what comes in, each
    level's pre-activation, norm and activation, their gradients, and what goes out."""
    return 6 * layout_of(case).depth + 4
