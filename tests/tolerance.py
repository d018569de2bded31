"""How far a result may lie from the float64 reference: one rule for all tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Largest deviation of all elements, in standard deviations of one element's error: errors of many
#: independent roundings are nearly normal, and 6 sigma is passed once in 5e8 elements.
SIGMAS = 6


def tolerance(dtype: torch.dtype, terms: int, roundings: int) -> float:
    """Allowed error of any element, as a share of the largest magnitude in its tensor.

    Rounding to a type with epsilon ``eps`` changes a value by at most ``eps / 2`` of it, with a
    sign as good as random, so that ``n`` roundings of values of like size add up to about
    ``sqrt(n) * eps / 2`` (and not ``n * eps / 2``, the worst case). Two kinds happen:

    * ``roundings`` to ``dtype``: inputs and outputs of operators that are stored, one after another
      (hidden activations, pre-norm values, their gradients);
    * ``terms`` in a sum of products, which every backend accumulates in float32 at least. The
      longest sum decides: channels times kernel area for an output, images times pixels for the
      gradient of a weight or a norm.

    The largest magnitude of a tensor stands for the size of the partial sums, unless a caller knows
    better: a gradient through batch statistics is what is left of the gradient at fixed statistics
    after projections are taken off, and may be nothing but the rounding errors of that.
    """
    accumulator = torch.promote_types(dtype, torch.float32)
    stored = math.sqrt(roundings) * torch.finfo(dtype).eps / 2
    summed = math.sqrt(terms) * torch.finfo(accumulator).eps / 2
    return SIGMAS * (stored + summed)


def assert_near(
    actual: Tensor, expected: Tensor, share: float, what: str = "result", scale: float = 0.0
) -> None:
    """``actual`` has the shape of ``expected``, is NaN or infinite exactly where that is, and
    elsewhere differs by at most ``share`` of the largest finite magnitude in ``expected`` (or of
    ``scale``, where that is larger)."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    assert torch.equal(kinds(actual), kinds(expected)), f"{what}: NaN or infinity elsewhere"
    finite = expected.isfinite()
    if finite.any():
        error = (actual[finite] - expected[finite]).abs().max().item()
        allowed = share * max(expected[finite].abs().max().item(), scale)
        assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def kinds(x: Tensor) -> Tensor:
    """0 for a finite value, 1 and 2 for the infinities, 3 for NaN."""
    return x.isposinf() + 2 * x.isneginf() + 3 * x.isnan()
