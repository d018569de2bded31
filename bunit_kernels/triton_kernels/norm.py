"""Batch normalisation and activation of all channels of a level, and their gradients."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """``activation((z - mean) * scale + shift)`` of a level's pre-norm output ``z``: float32, [C]
    each; ``scale`` is gamma / sqrt(var + eps), ``shift`` is beta."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    activation: str
