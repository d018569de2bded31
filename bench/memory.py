"""Peak memory of a call, beyond what was held before it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes that ``run()`` holds at its height, its results included. On the CPU the process's
    resident set, which counts pages as they are touched (``None`` where Linux does not tell); on
    CUDA what torch's allocator gave out."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # What glibc keeps of freed memory would be used again and hide what is used.
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # the kernel's way to forget the highest resident set so far
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError, AttributeError):  # no Linux, or no glibc
        return None


def _resident(what: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(lines[what].split()[0]) * 1024
