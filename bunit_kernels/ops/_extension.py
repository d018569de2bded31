"""Loads the compiled parts: operator schemas and CPU kernels in one object, CUDA in another."""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent


def _load(name: str) -> str | None:
    """Why the object could not be loaded, or ``None``."""
    path = _FOLDER / f"{name}.so"
    if not path.is_file():
        return f"the compiled part {path.name} is missing beside {_FOLDER.name}/__init__.py: " + (
            "install with 'pip install -e .' (needs a C++20 compiler)"
            if name == "_C_cpu"
            else "install with 'BUNIT_CUDA=1 pip install -e .' (needs nvcc and torch for CUDA)"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load with torch {torch.__version__}: {error}"
    return None


#: ``None`` where the part is loaded, else the reason why it is not.
CPU_MISSING = _load("_C_cpu")
CUDA_MISSING = CPU_MISSING or _load("_C_cuda")
