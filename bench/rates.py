"""What the machine can do: FMA rate and copy rate, for the floor under every time."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("fma_rate.cpp")


def measure_rates(quick: bool = False) -> dict:
    """``flops`` a second, ``bytes`` a second, and ``flops_by``: how the first was measured."""
    flops = None if quick else _fma_rate()
    by = "FMA in registers, all threads"
    if flops is None:
        flops, by = _gemm_rate(512 if quick else 2048), "float32 matrix product of torch"
    return {"flops": flops, "flops_by": by, "bytes": _copy_rate(1 << (22 if quick else 28))}


def _fma_rate() -> float | None:
    """FLOP/s of a small C++ program compiled for this machine; ``None`` without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "fma_rate")
        native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
        flags = ["-O3", native, "-ffp-contract=fast", "-std=c++20", "-pthread"]
        try:
            subprocess.run([compiler, *flags, str(SOURCE), "-o", program], check=True, timeout=60)
            command = [program, str(torch.get_num_threads())]
            output = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
        except (subprocess.SubprocessError, OSError):
            return None
    return float(output.stdout) * 1e9


def _gemm_rate(size: int) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _best(lambda: torch.mm(a, b))


def _copy_rate(size: int) -> float:
    """Bytes read plus bytes written a second, of a copy of ``size`` bytes into mapped memory."""
    source = torch.ones(size // 4)
    target = torch.zeros_like(source)
    return 2 * size / _best(lambda: target.copy_(source))


def _best(run, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def machine() -> dict:
    """Processor, threads and versions, for a results file."""
    import bunit_kernels

    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bunit_kernels": bunit_kernels.__version__,
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with ``+`` where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
