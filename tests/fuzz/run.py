"""Fuzzes everything that reads text and files from outside, with atheris (coverage-guided):

    python tests/fuzz/run.py --seconds 60                  each target for so long, one by one
    python tests/fuzz/run.py --target npz --seconds 600    one target
    python tests/fuzz/run.py --target npz build/fuzz/npz-crash-...    what an input does

Each target runs in a process of its own, from a few seeds made by code. Only documented errors may
come out; anything else, an input that takes more than 20 s or more than 4 GiB, ends the run with
exit code 1 and a file in build/fuzz that repeats it. Needs ``pip install -e '.[fuzz]'``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOUND = ROOT / "build" / "fuzz"
#: Whose branches guide the fuzzer. Not torch: instrumenting it takes minutes.
INSTRUMENTED = ["bunit_kernels", "PIL", "zipfile", "gzip", "numpy.lib.format", "json", "argparse"]

sys.path[:0] = [str(ROOT)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--target", action="append", help="one of them; may be repeated")
    parser.add_argument("--fuzz", metavar="TARGET", help=argparse.SUPPRESS)  # in the own process
    parser.add_argument("rest", nargs="*", metavar="FILE", help="inputs to repeat, of one target")
    options, more = parser.parse_known_args()
    if options.fuzz:
        return fuzz(options.fuzz, [*options.rest, *more])
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from targets import TARGETS

    names = options.target or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}, expected one of {', '.join(TARGETS)}")
    if options.rest:
        if len(names) != 1:
            parser.error("inputs are repeated with the one --target that they are of")
        for path in options.rest:
            print(path, "taken" if TARGETS[names[0]].run(Path(path).read_bytes()) else "refused")
        return 0
    failed = [name for name in names if not run(name, options.seconds)]
    if failed:
        print(f"failed: {', '.join(failed)}; inputs are in {FOUND}")
    return 1 if failed else 0


def run(name: str, seconds: float) -> bool:
    """Whether ``seconds`` of fuzzing find nothing."""
    from targets import TARGETS

    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bunit-corpus-") as corpus:
        for i, seed in enumerate(TARGETS[name].seeds()):
            (Path(corpus) / f"seed-{i}").write_bytes(seed)
        limits = [f"-max_total_time={max(1, round(seconds))}", "-timeout=20", "-rss_limit_mb=4096"]
        command = [
            sys.executable,
            __file__,
            "--fuzz",
            name,
            corpus,
            *limits,
            "-print_final_stats=1",
        ]
        done = subprocess.run(
            [*command, f"-artifact_prefix={FOUND / name}-"],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    said = done.stdout + done.stderr
    counts = [line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line]
    if done.returncode == 0 and counts:
        print(f"{name}: {counts[-1]} inputs, nothing found", flush=True)
        return True
    print(f"{name}: exit code {done.returncode}\n{said[-6000:]}", flush=True)
    return False


def fuzz(name: str, arguments: list[str]) -> int:
    """libFuzzer's loop; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from targets import TARGETS
    target = TARGETS[name].run
    atheris.Setup([name, *arguments], lambda data: target(data) and None)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
