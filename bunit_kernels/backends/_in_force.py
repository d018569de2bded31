"""Which backend is in force: a process-wide default and, over it, the blocks of a context."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import torch

_default = "auto"

#: Names of the blocks that the context is inside of, the innermost last.
_blocks: ContextVar[tuple[str, ...]] = ContextVar("bunit_kernels_backend", default=())


class _OfThread(threading.local):
    """What the thread last set of ``_blocks``: Dynamo (torch 2.13) neither traces a context
    variable nor guards on one; it does both with an attribute of this."""

    def __init__(self):
        self.blocks = ()


_traced = _OfThread()


def in_force() -> str:
    """Name of the backend in force."""
    blocks = _get()
    return blocks[-1] if blocks else _default


def set_default(name: str) -> None:
    global _default
    _default = name


def enter(name: str) -> None:
    _set((*_get(), name))


def leave() -> None:
    _set(_get()[:-1])


def _get() -> tuple[str, ...]:
    return _traced.blocks if torch.compiler.is_dynamo_compiling() else _blocks.get()


def _set(blocks: tuple[str, ...]) -> None:
    if not torch.compiler.is_dynamo_compiling():
        _blocks.set(blocks)
    _traced.blocks = blocks
