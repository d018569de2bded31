"""Stacked layers as modules, and what is done to networks of them."""

from .bunitize import bunitize
from .fuse import fuse
from .replace_units import replace_units
from .stacked_conv2d import StackedConv2d
from .stacked_linear import StackedLinear

__all__ = ["StackedConv2d", "StackedLinear", "bunitize", "fuse", "replace_units"]
