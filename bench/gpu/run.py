"""Proves and measures the CUDA kernels on the GPU that is there: see bench/gpu_run.sh."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import device

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT), str(ROOT / "bench")]

#: Seconds of the whole run, of which the table at the end needs a few, and of its parts at most.
TOTAL, TABLE, BUILD, TESTS, SANITIZER = 525, 5, 200, 130, 45
#: Seconds of rounds that one group of variants gets.
GROUP = 0.5


class Run:
    """The results file, written anew whenever something is known, and the time that is left."""

    def __init__(self, folder: Path, found: dict):
        self.start, self.folder, self.found = time.monotonic(), folder, found
        name = re.sub(r"[^a-z0-9]+", "-", found["device"]["gpu"].lower()).strip("-")
        self.path = folder / f"{name}.json"
        self.failed: list[str] = []

    @property
    def left(self) -> float:
        return TOTAL - (time.monotonic() - self.start)

    def write(self) -> None:
        new = self.path.with_suffix(".tmp")
        new.write_text(json.dumps(self.found, indent=1) + "\n")
        new.replace(self.path)

    def step(self, name: str, command: list[str], limit: float, env: dict | None = None) -> bool:
        """Runs a program with its output in a file; whether it ended well, in its time."""
        log, start = self.folder / f"{name}.log", time.monotonic()
        print(f"\n=== {name}: {' '.join(command)}", flush=True)
        limit = max(1, min(limit, self.left - TABLE))
        with log.open("w") as out:
            try:
                status = subprocess.run(
                    command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT,
                    env={**os.environ, **(env or {})}, timeout=limit,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                status = None
            except OSError as error:
                out.write(f"{error}\n")
                status = 127
        seconds, said = time.monotonic() - start, log.read_text(errors="replace")
        result = _result(name, status, said)
        self.found[name] = {"result": result, "seconds": seconds}
        self.write()
        good = status == 0 or result.startswith("not possible")
        print(f"{name}: {result}, {seconds:.1f} s" + ("" if good else f"; see {log}"), flush=True)
        if not good:
            print("\n".join(said.splitlines()[-25:]), flush=True)
            self.failed.append(name)
        return good


def _result(name: str, status: int | None, said: str) -> str:
    lines = said.strip().splitlines() or [""]
    if name in ("memcheck", "racecheck") and (
        status == 127 or "Device not supported" in said or "No such file" in said
    ):
        return f"not possible on this machine: {lines[0]}"
    if status is None:
        return "did not end in its time"
    if name == "tests":
        return lines[-1].strip("= ")
    return "passed" if status == 0 else f"failed with status {status}"


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: bash bench/gpu_run.sh OUTDIR", file=sys.stderr)
        return 2
    reason = device.why_none()
    if reason is not None:
        print(f"No GPU run on this machine: {reason}.", file=sys.stderr)
        return 3
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    from rates import commit

    run = Run(folder, {
        "device": device.describe(), "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "groups": [],
    })  # fmt: skip
    run.write()
    print(json.dumps(run.found["device"], indent=1), flush=True)
    if not build(run):
        return 1
    prove(run)
    try:
        measure(run)
    finally:
        from report import markdown

        lines = markdown(run.found)
        run.path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        print("\n".join(["", *lines, "", f"results: {run.path}, {TOTAL - run.left:.0f} s"]))
    return 1 if run.failed else 0


def build(run: Run) -> bool:
    environment = {
        "BUNIT_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": run.found["device"]["capability"],
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    return run.step("build", command, BUILD, environment)


def prove(run: Run) -> None:
    """Tests on the device, then compute-sanitizer over a few small cases."""
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]
    if subprocess.run([sys.executable, "-c", "import xdist"], capture_output=True).returncode == 0:
        tests += ["-n", str(max(1, min(8, (os.cpu_count() or 2) // 2)))]
    # Launches are measured by the benchmarks: each configuration takes a second to compile.
    run.step("tests", tests, TESTS, {"BUNIT_TRITON_TUNE": "0"})
    # The caching allocator would hide where a tensor ends.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    for tool in ("memcheck", "racecheck"):
        command = [
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
            "--kernel-name", "kernel_substring=bunit",
            sys.executable, str(Path(__file__).with_name("sanitize.py")),
        ]  # fmt: skip
        run.step(tool, command, SANITIZER, environment)


def measure(run: Run) -> None:
    """Rates, then groups of layers until the time is up."""
    import torch
    from floors import gpu_of
    from harness import quiet_warnings
    from layers import GROUPS, run_group

    quiet_warnings()
    torch.backends.cudnn.benchmark = True
    print("\n=== rates and layers", flush=True)
    rates = run.found["rates"] = device.measure_rates()
    run.write()
    gpu = gpu_of(run.found["device"]["gpu"])
    if gpu is not None:
        gpu = gpu.measured(rates["cores"], rates["copy"])
    for workload, direction, dtype in GROUPS:
        if run.left < TABLE + 20:
            print(f"no time for {workload.name} {direction} {dtype} and what follows", flush=True)
            run.found["not_measured_from"] = f"{workload.name} {direction} {dtype}"
            break
        group = run_group(workload, direction, dtype, gpu, GROUP)
        run.found["groups"].append(group)
        run.write()
        print(summary(group), flush=True)
        if any(name.startswith(("cuda", "triton")) for name in group["failed"]):
            run.failed.append(f"{workload.name} {direction} {dtype}")
    run.write()


def summary(group: dict) -> str:
    """One line: who took how long, the fastest first."""
    times = {n: t["device"]["median"] * 1e6 for n, t in group["times"].items()}
    ranked = ", ".join(f"{n} {times[n]:.4g}" for n in sorted(times, key=times.get))
    floors = ", ".join(f"{u} {t * 1e6:.3g}" for u, t in group["floors"].items())
    text = (
        f"{group['description']}, {group['direction']}, {group['dtype']} (floor {floors}): {ranked}"
    )
    return text + "".join(f"\n  FAILED {n}: {why}" for n, why in group["failed"].items())


if __name__ == "__main__":
    sys.exit(main())
