"""The backend in force, and what ``auto`` makes of it for one call."""

from __future__ import annotations

import os
import warnings

import torch

from ..layout import ConvGeometry, StackLayout
from ..ops import CPU_MISSING, CUDA_MISSING
from ._by_level import ByLevel
from ._crossover import prefers_torch
from .base import Backend
from .cpp import Cpp
from .cuda import Cuda
from .reference import Reference
from .torch_ops import TorchOps
from .triton import Triton

VARIABLE = "BUNIT_BACKEND"

_ALL = (Reference(), TorchOps(), Cpp(), Cuda(), Triton())
_BACKENDS: dict[str, Backend] = {b.name: b for b in _ALL}

#: Our kernels for tensors of a device, those that ``auto`` prefers first.
_OURS = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}

#: Made of PyTorch's operators alone.
_OF_PYTORCH = ("reference", "torch")

NAMES = ("auto", *_BACKENDS)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run; the message says why and what helps."""


def why_not(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> str | None:
    """Why backend ``name`` cannot run (on ``device``, with ``dtype``), or ``None`` where it can.

    Raises:
        ValueError: no backend has that name.
    """
    _check_name(name)
    if name == "auto":
        return None
    return _BACKENDS[name].why_not(None if device is None else torch.device(device), dtype)


def available(device: torch.device | str | None = None) -> list[str]:
    """Names of the backends that can run (on ``device``), without ``"auto"``."""
    return [name for name in NAMES if name != "auto" and why_not(name, device) is None]


def get_backend() -> str:
    """Name of the backend in force."""
    return _current


def describe(device: torch.device | str = "cpu") -> str:
    """What runs stacked layers on ``device`` now, to read: ``"cpp"``, ``"auto (cpp, torch)"``."""
    if _current != "auto":
        return _current
    usable = available(device)
    preferred = (*_OURS.get(torch.device(device).type, ()), "torch")
    return f"auto ({', '.join(name for name in preferred if name in usable)})"


class backend:
    """Chooses the backend of all stacked layers in this process, as a function or for a block.

    ``with backend("reference"): ...`` restores the choice before it at the end; ``backend("cpp")``
    alone lasts. The environment variable ``BUNIT_BACKEND`` sets the first choice.

    Args:
        name: ``"auto"`` (for each call the fastest that can run it), ``"reference"``, ``"torch"``,
            ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailable: it cannot run here.
    """

    def __init__(self, name: str):
        reason = why_not(name)
        if reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot run here: {reason}")
        global _current
        self.previous, _current = _current, name

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *error) -> None:
        global _current
        _current = self.previous


def select(
    op: str, x: torch.Tensor, layout: StackLayout, geometry: ConvGeometry | None = None
) -> Backend:
    """The backend that runs ``op`` (a method of :class:`~.base.Backend`) on ``x``; convolutions
    have a geometry too.

    Raises:
        BackendUnavailable: the backend in force cannot take ``x``.
    """
    transformed = torch._C._are_functorch_transforms_active()
    to_onnx = _exports_to_onnx()
    if _current == "auto":
        if transformed or to_onnx:
            return _BACKENDS["torch"]
        if geometry is not None and geometry.rows is None:
            return _EACH_LEVEL
        for name in _OURS.get(x.device.type, ()):
            ours = _BACKENDS[name]
            if ours.why_not(x.device, x.dtype) is None:
                return _BACKENDS["torch"] if prefers_torch(op, layout, geometry, x) else ours
        return _BACKENDS["torch"]
    chosen = _BACKENDS[_current]
    reason = chosen.why_not(x.device, x.dtype)
    if transformed and _current not in _OF_PYTORCH:
        reason = (
            "torch.func's transforms (grad, vmap, jvp, ...) do not see into its operators; 'auto', "
            "'torch' and 'reference' run under them"
        )
    if to_onnx and _current not in _OF_PYTORCH:
        reason = "ONNX has none of its operators; 'auto', 'torch' and 'reference' are exported"
    if reason is not None:
        raise BackendUnavailable(f"backend {_current!r} cannot run this input: {reason}")
    return chosen


def _exports_to_onnx() -> bool:
    """Whether ``torch.onnx.export`` is recording what runs."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return recorded and torch.onnx.is_in_onnx_export()


# As torch.compiler.assume_constant_result, which imports all of the compiler: it runs when Dynamo
# traces, to which torch.onnx.is_in_onnx_export itself is False.
_exports_to_onnx._dynamo_marked_constant = True


class _EachLevel(ByLevel):
    """``auto`` for whole units that go by level: each level where it is fastest."""

    name = "auto"

    def conv2d(self, x, weight, bias, geometry, activation):
        chosen = select("conv2d", x, geometry.layout, geometry)
        return chosen.conv2d(x, weight, bias, geometry, activation)


_EACH_LEVEL = _EachLevel()


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"unknown backend {name!r}, expected one of {', '.join(NAMES)}")


def _warn_of_missing_parts() -> None:
    """Once, where this is imported: ``auto`` does without a missing part and says nothing."""
    if CPU_MISSING is not None:
        warnings.warn(f"'auto' is PyTorch's own operators: {CPU_MISSING}", stacklevel=2)
    elif CUDA_MISSING is not None and torch.cuda.device_count() > 0:
        warnings.warn(f"'auto' does without our CUDA kernels: {CUDA_MISSING}", stacklevel=2)


def _from_environment() -> str:
    name = os.environ.get(VARIABLE, "auto")
    if name not in NAMES:
        raise ValueError(
            f"environment variable {VARIABLE}={name!r}: expected one of {', '.join(NAMES)}"
        )
    reason = why_not(name)
    if reason is not None:
        raise BackendUnavailable(f"environment variable {VARIABLE}={name!r}: {reason}")
    return name


_warn_of_missing_parts()
_current = _from_environment()
