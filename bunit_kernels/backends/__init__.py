"""Who runs a stacked layer: the backends, and the choice between them."""

from ._choice import (
    BackendUnavailable,
    available,
    backend,
    describe,
    get_backend,
    select,
    set_backend,
    why_not,
)

__all__ = [
    "BackendUnavailable",
    "available",
    "backend",
    "describe",
    "get_backend",
    "select",
    "set_backend",
    "why_not",
]
