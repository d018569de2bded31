"""TCA and TSA, the trade-offs of computation and of storage with accuracy.

They are measures the BUnit-Net paper proposes. **The formulas here are ours**: the paper's are not
at hand, so do not compare these values with the paper's printed ones.
"""

from __future__ import annotations

import math


def tca(accuracy: float, dense_accuracy: float, flops_saving: float, beta: float = 1.0) -> float:
    """Trade-off of computation with accuracy, in [0, 1]; **our formula, not the paper's**.

    With the retention ``A = min(1, accuracy / dense_accuracy)`` and the saving ``S`` of FLOPs, the
    weighted harmonic mean ``(1 + beta^2) A S / (beta^2 A + S)``: 0 where nothing is saved or
    nothing retained, 1 only where everything is.

    Args:
        accuracy, dense_accuracy: of the compact and the dense network, in [0, 1].
        flops_saving: ``saving`` of FLOPs; below 0 it counts as 0.
        beta: above 1 the saving weighs more, below 1 the accuracy.

    Raises:
        ValueError: an accuracy outside [0, 1], a dense accuracy of 0, a saving above 1, or a
            ``beta`` that is not positive.
    """
    return _harmonic(_retention(accuracy, dense_accuracy), flops_saving, beta)


def tsa(
    accuracy: float, dense_accuracy: float, parameters_saving: float, beta: float = 1.0
) -> float:
    """Trade-off of storage with accuracy: as ``tca``, with the saving of parameters."""
    return _harmonic(_retention(accuracy, dense_accuracy), parameters_saving, beta)


def _retention(accuracy: float, dense_accuracy: float) -> float:
    for name, value in (("accuracy", accuracy), ("dense_accuracy", dense_accuracy)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if dense_accuracy == 0:
        raise ValueError("dense_accuracy must be above 0: nothing can be retained of it")
    return min(1.0, accuracy / dense_accuracy)


def _harmonic(retention: float, saved: float, beta: float) -> float:
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be above 0, got {beta}")
    if not saved <= 1:
        raise ValueError(f"a saving must be at most 1, got {saved}")
    saved = max(0.0, saved)
    weight = beta * beta
    denominator = weight * retention + saved
    return (1 + weight) * retention * saved / denominator if denominator else 0.0
