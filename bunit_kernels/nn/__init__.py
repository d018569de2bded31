"""Modules: stacked layers that hold their packed parameters."""

from .stacked_conv2d import StackedConv2d
from .stacked_linear import StackedLinear

__all__ = ["StackedConv2d", "StackedLinear"]
