"""Tensors for a case, and the package's operations run on them."""

from __future__ import annotations

import math
import random

import torch
from reference_cases import Case, ConvCase, LinearCase, layout_of
from reference_loop import Tensors, condition
from torch import Tensor

from bunit_kernels import functional as F

#: What drawn tensors keep to (see ``Condition``), so that results can be compared.
KINK_DISTANCE, SPREAD = 1e-5, 0.1


def draw(
    case: Case, seed: int | str = 0, *, norms: bool = False, comparable: bool = True
) -> Tensors:
    """Float64 tensors for ``case``: ``x``, ``weights``, ``biases``, ``gammas`` and ``betas`` (with
    ``norms``), ``residual``, and ``grad``, a gradient of the output.

    Where they are to be ``comparable``, draws again until no pre-activation is at a kink and no
    channel that is to be normalised is all but constant. Among many thousand values some always
    are.
    """
    numbers = random.Random(f"{seed} {case}")
    for _ in range(1000 if comparable else 1):
        generator = torch.Generator().manual_seed(numbers.randrange(2**62))
        tensors = _draw(case, generator, norms)
        if not comparable:
            return tensors
        found = condition(case, tensors)
        if found.kink_distance > KINK_DISTANCE and found.spread > SPREAD:
            return tensors
    raise AssertionError(f"no draw for {case} can be compared: {found}")


def _draw(case: Case, generator: torch.Generator, norms: bool) -> Tensors:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    levels = layout_of(case).levels
    weights, channels = [], [level.out_channels for level in levels]
    for level in levels:
        blocks = [level.block_shape(u) for u in range(len(level.blocks))]
        parts = [normal(*shape) / math.sqrt(math.prod(shape[1:])) for shape in blocks]
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
    if layout == "loose":
        x = x.contiguous()
        strides = [
            s if n > 1 else 5 + i for i, (n, s) in enumerate(zip(x.shape, x.stride(), strict=True))
        ]
        return x.as_strided(x.shape, strides)
    return x


def converted(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """The same values rounded to ``dtype``, in the strides they have."""
    return {
        name: [t.to(dtype, memory_format=torch.preserve_format) for t in ts]
        for name, ts in tensors.items()
    }


def on_device(tensors: Tensors, device: str) -> Tensors:
    """The same on another device, in the strides they have."""
    if device == "cpu":
        return tensors
    return {name: [_moved(t, device) for t in ts] for name, ts in tensors.items()}


def _moved(t: Tensor, device: str) -> Tensor:
    if t.numel() == 0:
        return t.to(device)
    # All elements from the first to the last, whether the tensor has them or not.
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.as_strided((last + 1,), (1,)).to(device).as_strided(t.shape, t.stride())


def outputs_and_gradients(op, case: Case, tensors: Tensors) -> dict[str, Tensor]:
    """``op``'s output, and the gradient with respect to each input, under the backend in force."""
    leaves = {
        f"grad of {name}[{i}]": t.detach().requires_grad_()
        for name, ts in tensors.items()
        if name != "grad"
        for i, t in enumerate(ts)
    }
    names = iter(leaves.values())
    arguments = {
        name: ts if name == "grad" else [next(names) for _ in ts] for name, ts in tensors.items()
    }
    y = op(case, arguments)
    gradients = torch.autograd.grad(y, list(leaves.values()), tensors["grad"][0])
    return {"output": y.detach(), **dict(zip(leaves, gradients, strict=True))}


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
