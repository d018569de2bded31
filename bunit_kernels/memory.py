"""Large outputs without page faults: an opt-in for processes on the CPU."""

from __future__ import annotations

import ctypes
import os

_MADV_HUGEPAGE = 14
_HUGE_PAGE = 1 << 21


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, for its next tensors; returns whether it
    can (``False`` where there is no glibc).

    glibc gives large freed blocks back to the system, so that each large output is made of pages
    that the system must first map and clear, which can take longer than the layer's arithmetic.
    Call this early, before large tensors are made. The price: the process stays as large as it
    once was. It lasts, for all of the process, PyTorch's own operators too.

    Where Linux makes huge pages on request, what the process allocates from now on lies in them, up
    to half of the machine's memory: a plane of 32x32 float32 pixels is a page of 4 KiB by itself,
    and a layer of small units reads and writes many thousands of planes.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    # M_MMAP_MAX=0 and not a large M_MMAP_THRESHOLD, because glibc refuses ones above 32 MiB.
    settings = ((m_mmap_max, 0), (m_trim_threshold, -1), (m_arena_max, 1))
    kept = all(mallopt(name, value) == 1 for name, value in settings)
    if kept:
        _want_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return kept


def _want_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Grows the heap by ``size`` bytes, or as much of that as can be had, advises the system, and
    frees them untouched: they are addresses, not memory, until something is written there."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    while size >= 2 * _HUGE_PAGE:
        block = libc.malloc(size)
        if block:
            begin = -(-block // _HUGE_PAGE) * _HUGE_PAGE
            end = (block + size) // _HUGE_PAGE * _HUGE_PAGE
            libc.madvise(begin, end - begin, _MADV_HUGEPAGE)
            return libc.free(block)
        size //= 2
