"""TCA, TSA and theoretical speedup: what is saved, weighed against what it costs in accuracy.

Equation 9 of Lan, Cheung, Jiang, Hu, Li: "Compact Neural Network via Stacking Hybrid Units", IEEE
TPAMI 46(1), 2024. With accuracy ``a`` and cost ``c`` (FLOPs for TCA, parameters for TSA) of the
baseline ``b`` and of the new network ``n``::

    exp(w1 (c_b - c_n) / c_b) / exp(w2 (a_b - a_n) / a_b)

The baseline itself has 1; above it are networks that save more than they lose.
"""

from __future__ import annotations

import math
import sys
from numbers import Real

#: The pairs (w1, w2) that the paper's tables print: even, for accuracy, for cost.
WEIGHTS = ((1.0, 1.0), (1.0, 4.0), (4.0, 1.0))

_LARGEST = sys.float_info.max


def tca(
    baseline_accuracy: float,
    accuracy: float,
    baseline_flops: float,
    flops: float,
    *,
    w1: float = 1.0,
    w2: float = 1.0,
) -> float:
    """Trade-off of computation with accuracy (equation 9), above 0; of the baseline itself 1.

    Args:
        baseline_accuracy, accuracy: of both networks, in percent or as shares, both alike.
        baseline_flops, flops: of both networks, in any unit.
        w1: weight of the saving, at least 0.
        w2: weight of the accuracy, at least 0.

    Raises:
        ValueError: an argument is no finite number (a bool is none) or below 0, a baseline is 0, an
            accuracy above 100, or the result too large for a float.
    """
    saved = _share_saved("flops", baseline_flops, flops)
    return _tradeoff(saved, baseline_accuracy, accuracy, w1, w2)


def tsa(
    baseline_accuracy: float,
    accuracy: float,
    baseline_parameters: float,
    parameters: float,
    *,
    w1: float = 1.0,
    w2: float = 1.0,
) -> float:
    """Trade-off of storage with accuracy: as ``tca``, with parameters in the place of FLOPs."""
    saved = _share_saved("parameters", baseline_parameters, parameters)
    return _tradeoff(saved, baseline_accuracy, accuracy, w1, w2)


def speedup(baseline_flops: float, flops: float) -> float:
    """Theoretical speedup, ``baseline_flops / flops``: the paper's column of that name.

    Raises:
        ValueError: an argument is no finite number above 0.
    """
    for name, value in (("baseline_flops", baseline_flops), ("flops", flops)):
        _check(name, value, above=True)
    return baseline_flops / flops


def _tradeoff(saved: float, baseline_accuracy: float, accuracy: float, w1: float, w2: float):
    _check("baseline_accuracy", baseline_accuracy, above=True)
    _check("accuracy", accuracy)
    for name, value in (("baseline_accuracy", baseline_accuracy), ("accuracy", accuracy)):
        if value > 100:
            raise ValueError(f"{name} must be at most 100 (percent), got {value}")
    for name, value in (("w1", w1), ("w2", w2)):
        _check(name, value)
    lost = (baseline_accuracy - accuracy) / baseline_accuracy
    try:
        return math.exp(w1 * saved - w2 * lost)
    except OverflowError:
        raise ValueError(
            f"the score is too large for a float: accuracy {accuracy} against {baseline_accuracy} "
            f"of the baseline, with w1 {w1} and w2 {w2}"
        ) from None


def _share_saved(what: str, baseline: float, value: float) -> float:
    _check(f"baseline_{what}", baseline, above=True)
    _check(what, value)
    return (baseline - value) / baseline


def _check(name: str, value: float, above: bool = False) -> None:
    """Raises ``ValueError`` unless ``value`` is a finite number, above 0 or at least 0."""
    fits = isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    if not fits or (above and value == 0):
        low = "above 0" if above else "of at least 0"
        raise ValueError(f"{name} must be a finite number {low}, got {value!r}")
