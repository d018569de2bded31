"""Stacked layers of small networks: every unit in one launch."""

from . import backends, functional, memory, metrics, models
from .backends import backend, set_backend
from .nn import StackedConv2d, StackedLinear, bunitize, fuse
from .units import PAPER_POOL, UnitSpec

__version__ = "0.1.0"

__all__ = [
    "PAPER_POOL",
    "StackedConv2d",
    "StackedLinear",
    "UnitSpec",
    "backend",
    "backends",
    "bunitize",
    "functional",
    "fuse",
    "memory",
    "metrics",
    "models",
    "set_backend",
]
