"""``python -m bunit_kernels.train``: a network of basic units trained beside its dense twin."""

from .cli import main

__all__ = ["main"]
