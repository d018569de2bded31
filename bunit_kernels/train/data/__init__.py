"""Labelled images from wherever they come, in memory or in files that are decoded as needed."""

from .images import ImageData, LabelledImages
from .load import load_data

__all__ = ["ImageData", "LabelledImages", "load_data"]
