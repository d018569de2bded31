"""``python -m bunit_kernels.report``: runs of the training program as one page, with plots."""

from .cli import main
from .units_seen import draw_feature_maps

__all__ = ["draw_feature_maps", "main"]
