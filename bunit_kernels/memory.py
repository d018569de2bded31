"""Large outputs without page faults: an opt-in for processes on the CPU."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, for its next tensors; returns whether it
    can (``False`` where there is no glibc).

    glibc gives large freed blocks back to the system, so that each large output is made of pages
    that the system must first map and clear, which can take longer than the layer's arithmetic.
    Call this early, before large tensors are made. The price: the process stays as large as it
    once was. It lasts, for all of the process, PyTorch's own operators too.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # M_MMAP_MAX=0 and not a large M_MMAP_THRESHOLD, because glibc refuses ones above 32 MiB.
    settings = ((m_mmap_max, 0), (m_trim_threshold, -1), (m_arena_max, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)
