"""The CUDA device that is there, or why there is none; its rates."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("rates.cu")


def why_none() -> str | None:
    """Why nothing can be run on a GPU here, in words, or ``None``."""
    try:
        import torch
    except ImportError as error:
        return f"this python3 has no torch ({error})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device (nvidia-smi may tell why)"
    if shutil.which("nvcc") is None:
        return "there is a CUDA device, but no nvcc on the PATH to build the kernels with"
    return None


def describe() -> dict:
    """Names and versions of what runs."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "devices": torch.cuda.device_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "nvcc": _said(["nvcc", "--version"]).rpartition("release ")[2].partition(",")[0],
    }


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if len(lines) == 1 else done.stdout.strip()


def measure_rates() -> dict[str, float]:
    """FLOP/s of plain cores (``cores`` float32, ``packed`` bfloat16 pairs) and bytes/s of a
    ``copy``, by rates.cu."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "rates"
        command = ["nvcc", "-O3", "-std=c++17", "-arch=native", str(SOURCE), "-o", str(program)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)
