"""``bunit_kernels.memory``: freed memory is used again, not given back and mapped anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Page faults of a fresh tensor of 64 MB, more than glibc ever keeps by itself: the median of nine,
# since a small block that comes to lie in freed memory makes the heap grow once more.
COUNT = """
import resource, statistics, sys, torch
import bunit_kernels
if sys.argv[1] == "keep" and not bunit_kernels.memory.keep_freed_memory():
    sys.exit("no glibc")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(statistics.median(faults() for _ in range(9)))
"""


def page_faults(policy: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT, policy], capture_output=True, text=True)
    if done.stderr.strip() == "no glibc":
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kept_memory_costs_no_page_faults():
    usual, kept = page_faults("usual"), page_faults("keep")
    assert kept < usual / 10, (kept, usual)


# Whether the end of a fresh tensor of 64 MB lies in memory for which huge pages are wanted (hg).
FLAGS = """
import sys, torch
import bunit_kernels
if not bunit_kernels.memory.keep_freed_memory():
    sys.exit("no glibc")
tensor = torch.zeros(16 << 20)
end, here = tensor.data_ptr() + tensor.nbytes - 1, False
for line in open("/proc/self/smaps"):
    first = line.split()[0]
    if "-" in first and not first.endswith(":"):
        low, high = (int(address, 16) for address in first.split("-"))
        here = low <= end < high
    elif here and first == "VmFlags:":
        print("hg" in line.split())
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(),
    reason="a system without transparent huge pages",
)
def test_kept_memory_wants_huge_pages():
    done = subprocess.run([sys.executable, "-c", FLAGS], capture_output=True, text=True)
    if done.stderr.strip() == "no glibc":
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True", done.stdout


# An output of 20 MB and more in memory that is there goes around the caches, that of a few images
# does not.
LARGE = """
import sys, torch
from bunit_kernels import StackedConv2d, backend, fuse, memory
if not memory.keep_freed_memory():
    sys.exit("no glibc")
dtype = getattr(torch, sys.argv[1])
# Units whose pixels are whole lines, whatever the size, and units whose are not.
layer = fuse(StackedConv2d(["4-8-4"] * 2 + ["3-2-1"] + ["8-16-8:k1"] + ["4-4-4"] * 2).eval())
layer.to(dtype)
for size in (28, 30, 32, 16, 56):
    images = (24 << 20) // (layer.out_channels * size * size * dtype.itemsize)
    x = torch.randn(images, layer.in_channels, size, size, dtype=dtype)
    with torch.no_grad(), backend("cpp"):
        parts = torch.cat([layer(part) for part in x.split(8)])
        for _ in range(2):
            torch.full_like(parts, float("nan"))  # freed: what is not written shows
            assert torch.equal(layer(x), parts), size
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_outputs_are_the_same_bits(dtype):
    done = subprocess.run([sys.executable, "-c", LARGE, dtype], capture_output=True, text=True)
    if done.stderr.strip() == "no glibc":
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr


# Whether the middle of a large output lies in memory for which huge pages are wanted (hg), and
# whether any does that is not this output's alone.
ADVISED = """
import sys, torch
from bunit_kernels import StackedConv2d, backend
x = torch.randn(32, 128, 64, 64)
with torch.no_grad(), backend("cpp"):
    y = StackedConv2d("1-2-1", 128, norm=None).eval()(x)
inside = outside = False
for line in open("/proc/self/smaps"):
    first = line.split()[0]
    if "-" in first and not first.endswith(":"):
        low, high = (int(address, 16) for address in first.split("-"))
    elif first == "VmFlags:" and "hg" in line.split():
        begin, end = y.data_ptr(), y.data_ptr() + y.nbytes
        if low < end and high > begin:
            inside = True
            outside = outside or low < begin or high > end
print(inside, outside)
"""


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(),
    reason="a system without transparent huge pages",
)
@pytest.mark.parametrize(("wanted", "said"), [("1", "True False"), ("0", "False False")])
def test_huge_pages_of_outputs_and_nothing_else(wanted, said):
    environment = {**os.environ, "BUNIT_HUGE_PAGES": wanted}
    command = [sys.executable, "-c", ADVISED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said


def test_huge_pages_are_wanted_or_not():
    environment = {**os.environ, "BUNIT_HUGE_PAGES": "never"}
    command = [sys.executable, "-c", ADVISED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "BUNIT_HUGE_PAGES=never: expected 0 or 1" in done.stderr
