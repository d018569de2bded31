"""Puts every operator of a namespace that a piece of code calls through torch.library.opcheck."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def opchecked(namespace: str):
    """Afterwards what was called inside, forward and backward, is called again and compared with
    its fake kernel and its schema: shapes, strides, dtypes, what aliases what."""
    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == namespace:
                calls.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Record():
        yield
    assert len(calls) >= 2
    for func, args, kwargs in calls:
        torch.library.opcheck(func, args, kwargs, test_utils=("test_schema", "test_faketensor"))
