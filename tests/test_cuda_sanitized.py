"""The kernels under ThreadSanitizer and AddressSanitizer, on the emulation of CUDA and in a program
of their own (tests/emulation/operators.cpp); and that the sanitizers do see what goes wrong there.
"""

from __future__ import annotations

import os
import re
import subprocess

import emulated_build
import pytest
from emulated_build import ADDRESS, CSRC, KERNELS, ROOT, THREAD
from reference_cases import some

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        emulated_build.why_no_kernels() is not None, reason=str(emulated_build.why_no_kernels())
    ),
]

SOURCES = [ROOT / "tests" / "emulation" / "operators.cpp", CSRC / "schema.cpp", *KERNELS]

#: A __syncthreads() in a kernel's source: "file.cuh:123".
BARRIERS = [
    f"{path.name}:{number}"
    for path in sorted((CSRC / "cuda").glob("*.cu*"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if "__syncthreads()" in line.split("//")[0]
]

SETTINGS = {
    # New memory holds NaN. What PyTorch keeps until the end is no leak of a kernel's.
    "ASAN_OPTIONS": "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    "OMP_NUM_THREADS": "1",
}


def run(flavor, *cases, **settings):
    """Exit status and what was said; ``shared_less="4"`` sets ``BUNIT_EMULATION_SHARED_LESS``."""
    program = emulated_build.program("operators", SOURCES, flavor)
    variables = {f"BUNIT_EMULATION_{name.upper()}": value for name, value in settings.items()}
    environment = {**os.environ, **SETTINGS, **variables}
    done = subprocess.run([program, *cases], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("processors", ["132", "1"])
@pytest.mark.parametrize("flavor", [ADDRESS, THREAD], ids=lambda f: f.name)
def test_nothing_is_reported(flavor, processors):
    status, said = run(flavor, processors=processors)
    assert status == 0, said[:5000]
    assert re.fullmatch(r"\d+ cases\n", said)


@pytest.mark.parametrize("barrier", some(BARRIERS, 3))
def test_every_barrier_is_needed_and_its_removal_reported(barrier):
    # Of one processor, so that blocks take several tiles.
    status, said = run(THREAD, without_barrier=barrier, processors="1")
    assert status != 0
    # A thread that is ahead may also wait at another barrier than the rest, which is told first.
    assert "ThreadSanitizer: data race" in said or "divergent barrier" in said, said[:5000]


def test_tile_too_small_by_one_is_reported():
    status, said = run(ADDRESS, "units", shared_less="4")
    assert status != 0
    assert "heap-buffer-overflow" in said and ".cu" in said
