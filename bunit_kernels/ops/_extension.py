"""Loads the compiled parts: operator schemas and CPU kernels in one object, CUDA in another."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent


def _load(name: str) -> str | None:
    """Why the object could not be loaded, or ``None``."""
    path = next(iter(sorted(_FOLDER.glob(f"{name}*.so"))), None)
    if path is None:
        return (
            f"the compiled part {name} is missing beside {_FOLDER.name}/__init__.py: "
            "install with 'pip install -e .' (needs a C++20 compiler"
            + ("" if name == "_C_cpu" else ", nvcc and a CUDA build of torch")
            + ")"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load with torch {torch.__version__}: {error}"
    return None


#: ``None`` where the part is loaded, else the reason why it is not.
CPU_MISSING = _load("_C_cpu")
CUDA_MISSING = CPU_MISSING or _load("_C_cuda")
