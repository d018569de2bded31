"""``python -m bunit_kernels.report``: runs of the training program as one page, with plots."""

from .cli import main

__all__ = ["main"]
