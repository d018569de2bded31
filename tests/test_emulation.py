"""The emulation of CUDA itself: what it runs right, and that it reports what is wrong.

``tests/emulation/probe.cu`` holds the kernels; a case of it runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import time

import emulated_build
import pytest
from emulated_build import ADDRESS, PLAIN, ROOT, THREAD

pytestmark = pytest.mark.skipif(
    emulated_build.why_not() is not None, reason=str(emulated_build.why_not())
)

PROBE = ROOT / "tests" / "emulation" / "probe.cu"
RIGHT = ("reverse", "sum", "blur", "lanes", "limits", "low_precision")


def run(flavor, case, **settings):
    """Exit status and what was said; ``order="reverse"`` sets ``BUNIT_EMULATION_ORDER``."""
    program = emulated_build.program("probe", [PROBE], flavor)
    variables = {f"BUNIT_EMULATION_{name.upper()}": value for name, value in settings.items()}
    environment = {**os.environ, **variables}
    done = subprocess.run([program, case], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("flavor", [PLAIN, ADDRESS, THREAD], ids=lambda f: f.name)
@pytest.mark.parametrize("case", RIGHT)
def test_right_kernels_run_right_and_nothing_is_reported(case, flavor):
    assert run(flavor, case) == (0, "")


@pytest.mark.parametrize("order", ["reverse", "1", "2", "77"])
@pytest.mark.parametrize("case", RIGHT)
def test_order_of_threads_does_not_matter_to_right_kernels(case, order):
    assert run(PLAIN, case, order=order) == (0, "")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("diverging", "divergent barrier.*probe.cu:[0-9]+ and probe.cu:[0-9]+"),
        ("leaving_early", "128 threads 100 wait at a barrier.* 28 have returned.*probe.cu:[0-9]+"),
        ("missing_lane", "deadlock.* 31 in a warp function, 33 have returned.*probe.cu:[0-9]+"),
        ("outside_mask", "a lane shuffles from one that takes no part, at probe.cu:[0-9]+"),
        ("not_in_mask", "a mask that it is not in, at probe.cu:[0-9]+"),
        ("different_calls", "in different warp functions.*probe.cu:[0-9]+ and probe.cu:[0-9]+"),
    ],
)
def test_threads_that_wait_for_ever_are_told(case, message):
    status, said = run(PLAIN, case)
    assert status == 2
    assert re.search(f"kernel {case}, block .*{message}", said), said


def line_of(statement, occurrence=0):
    """``probe.cu:LINE`` of a statement."""
    lines = PROBE.read_text().splitlines()
    numbers = [i for i, line in enumerate(lines, 1) if statement in line]
    return f"probe.cu:{numbers[occurrence]}"


def test_missing_barrier_is_a_race_that_is_reported():
    status, said = run(THREAD, "reverse", without_barrier=line_of("__syncthreads"))
    assert status != 0
    assert "WARNING: ThreadSanitizer: data race" in said
    assert line_of("tile[threadIdx.x] = x[") in said
    assert line_of("= tile[blockDim.x - 1 - threadIdx.x]") in said


@pytest.mark.parametrize("order", ["", "reverse", "5"])
def test_missing_barrier_gives_wrong_results(order):
    removed = line_of("__syncthreads")
    assert run(PLAIN, "reverse", without_barrier=removed, order=order)[0] == 3


def test_tile_too_small_by_one_is_reported():
    status, said = run(ADDRESS, "blur", shared_less="4")
    assert status != 0
    assert "heap-buffer-overflow" in said
    assert re.search("0 bytes (after|to the right of) 516-byte region", said), said
    assert "blur" in said and "probe.cu" in said


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("misaligned", "misaligned address .* requires 16 byte alignment"),
        ("static_overrun", "index 128 out of bounds"),
    ],
)
def test_bad_addresses_are_reported(case, message):
    status, said = run(ADDRESS, case)
    assert status != 0
    assert re.search(message, said), said


def test_speed():
    """20,000 blocks of 128 threads with two barriers and five shuffles each took 1 s; ten times as
    long would make the suites that run on it useless."""
    emulated_build.program("probe", [PROBE], PLAIN)
    begin = time.perf_counter()
    assert run(PLAIN, "speed") == (0, "")
    assert time.perf_counter() - begin < 10
