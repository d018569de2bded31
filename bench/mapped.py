"""The child process for *mapped* times: reads jobs as JSON lines, answers each with one line.

Keeps all freed memory mapped (see :mod:`harness`) before anything large is allocated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


class MappedProcess:
    """Started at the first job; one job at a time."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def measure(self, **job) -> dict:
        """``summaries`` by variant; ``error`` where some or all are missing."""
        if self.process is None or self.process.poll() is not None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
            )  # fmt: skip
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": "the child process ended"}

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(timeout=30)


def main() -> None:
    # Whatever else prints goes to stderr; the answers have the real stdout to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from harness import quiet_warnings

    from bunit_kernels.memory import keep_freed_memory

    kept = keep_freed_memory()
    quiet_warnings()
    import torch

    for line in sys.stdin:
        job = json.loads(line)
        torch.set_num_threads(job["threads"])
        answer = _run(job) if kept else {"error": "no mallopt: not a glibc system"}
        print(json.dumps(answer), file=answers, flush=True)


def _run(job: dict) -> dict:
    from harness import build, measure
    from workloads import Workload, make_case

    try:
        case = make_case(Workload(**job["workload"]), job["direction"])
        built = build(case, job["names"], checked=False)
        samples = measure(built.variants, job["budget"], job["min_rounds"])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    missing = built.skipped | built.failed
    return {
        "summaries": {name: s.summary() for name, s in samples.items()},
        "error": "; ".join(f"{name}: {why}" for name, why in missing.items()) or None,
    }


if __name__ == "__main__":
    main()
