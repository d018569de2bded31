"""``bunit_kernels.memory``: freed memory is used again, not given back and mapped anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Page faults of five fresh tensors of 64 MB, beyond what glibc ever keeps by itself.
COUNT = """
import resource, sys, torch
from bunit_kernels.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("no glibc")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(sum(faults() for _ in range(5)))
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
