"""Parameters, FLOPs, and the share saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..backends import BackendUnavailable
from .conventions import MULTIPLY_ADDS, FlopCounter


def count_parameters(model: nn.Module) -> int:
    """Learnable values of ``model``; a shared tensor counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flops(
    model: nn.Module, input_size: Sequence[int], *, convention: str = MULTIPLY_ADDS
) -> int:
    """FLOPs of one forward pass over one item, in eval mode; the model is left as it was.

    Args:
        input_size: shape of one item, without the batch dimension: ``(C, H, W)``, or
            ``(features,)``.
        convention: ``"multiply_adds"``, 2 x those of convolutions and linear maps, or ``"paper"``,
            which counts biases of convolutions and BatchNorm too
            (:mod:`bunit_kernels.metrics.conventions`).

    Raises:
        ValueError: no such convention, ``input_size`` is no such shape, or the model cannot take
            it.
    """
    model = uncompiled(model)
    flops = FlopCounter(model, convention)
    x = random_batch(model, input_size, 1)
    with evaluating(model), torch.no_grad(), flops:
        run(model, x)
    return flops.total


def saving(compact: float, dense: float) -> float:
    """``1 - compact / dense``: the share saved; negative where compact needs more.

    Raises:
        ValueError: ``dense`` is not positive or ``compact`` is negative.
    """
    if not dense > 0 or not compact >= 0:
        raise ValueError(f"a saving needs compact >= 0 and dense > 0, got {compact} and {dense}")
    return 1 - compact / dense


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped: a compiled one hides its ops from counters and its
    layers from hooks."""
    return getattr(model, "_orig_mod", model)


def run(model: nn.Module, x: Tensor) -> None:
    """One forward pass, which may not fit the model.

    Raises:
        ValueError: the model cannot take items of this shape.
    """
    try:
        model(x)
    except (NotImplementedError, BackendUnavailable):
        raise  # says what is missing here, not that the shape is wrong
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the model cannot take an item of shape {tuple(x.shape[1:])}: {error}"
        ) from error


def random_batch(model: nn.Module, input_size: Sequence[int], batch_size: int) -> Tensor:
    """A batch of fixed random values, on the model's device and of its dtype."""
    size = tuple(input_size) if isinstance(input_size, Sequence) else (input_size,)
    if not 1 <= len(size) <= 3 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(
            "input_size is the shape of one item without its batch dimension, such as (3, 32, 32) "
            f"or (784,); got {input_size!r}"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, *size, generator=generator).to(like.device, like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within; after it every module is in the mode it was in."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
