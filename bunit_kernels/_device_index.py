"""Indices of channels as tensors, copied to a device once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def to_gpu_once(table: Tensor, device: torch.device, what: str) -> Tensor:
    """``table`` on ``device``; the caller keeps it for as long as a captured CUDA graph may read
    it.

    Raises:
        RuntimeError: the stream is being captured, which a copy from the host would break.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{what} is copied to the GPU at a layer's first call, got one inside the capture of "
            "a CUDA graph: call the layer once before the capture"
        )
    return table.to(device)


def select(
    values: Tensor, dim: int, index: Callable[[], Sequence[int]], kept: Callable[[], DeviceIndex]
) -> Tensor:
    """``values`` at ``index()`` along ``dim``; ``kept()`` is the same index with its copies. A
    compiler's, a trace's or an export's tensors want theirs made while they look on."""
    if type(values) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return values.index_select(dim, torch.tensor(index(), device=values.device))
    return values.index_select(dim, kept().on(values.device))


class DeviceIndex:
    """An index of which each device gets one copy, kept as long as this object."""

    def __init__(self, values: Sequence[int]):
        self.values = tuple(values)
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """int64 ``[len(values)]``."""
        if (copy := self._copies.get(device)) is None:
            # No inference tensor: autograd may have to save it later.
            with torch.inference_mode(False):
                index = torch.tensor(self.values, device="cpu")
                copy = self._copies[device] = to_gpu_once(index, device, "an index of channels")
        return copy

    def __reduce__(self):
        return DeviceIndex, (self.values,)
