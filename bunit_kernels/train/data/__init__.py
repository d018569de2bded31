"""Labelled images in memory, from wherever they come."""

from .images import ImageData, LabelledImages
from .load import load_data

__all__ = ["ImageData", "LabelledImages", "load_data"]
