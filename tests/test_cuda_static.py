"""The check of what kernels take (bench/resources/cuda_kernels.py), and the kernels under it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench" / "resources"))

import cuda_kernels as resources

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")

SMALL = """
namespace { template <int N> struct Tag {}; }
template <typename T, int N>
__global__ void small(const float* x, float* y) {
  __shared__ float tile[N];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[N - 1 - threadIdx.x];
}
template __global__ void small<Tag<2>, 256>(const float*, float*);
"""
# Ninety-six sums that live at once, in a kernel that may have sixty-four registers.
SPILLING = """
__global__ void __launch_bounds__(1024, 1) spilling(const float* x, float* y, int n) {
  float sums[96] = {};
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int j = 0; j < 96; ++j) sums[j] = sums[j] * x[i] + x[(i + j) * n];
#pragma unroll
  for (int j = 0; j < 96; ++j) y[j * 1024 + threadIdx.x] = sums[j];
}
"""
TOO_MUCH_SHARED = """
__global__ void greedy(float* y) {
  __shared__ float tile[13000];
  tile[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[12999 - threadIdx.x];
}
"""


def run(tmp_path, text, capsys, *architectures):
    source = tmp_path / "source.cu"
    source.write_text(text)
    status = resources.main(["--arch", *map(str, architectures or (90,)), "--", str(source)])
    return status, capsys.readouterr()


@needs_nvcc
def test_table_of_registers_and_shared_memory(tmp_path, capsys):
    status, said = run(tmp_path, SMALL, capsys, 80, 90, 100)
    assert status == 0
    head, _, row = said.out.splitlines()[-3:]
    assert [h.strip() for h in head.strip("|").split("|")] == [
        "kernel", "sm_80", "sm_90", "sm_100",
    ]  # fmt: skip
    name, *cells = (c.strip() for c in row.strip("|").split("|"))
    assert name == "source.cu: small<Tag<2>, 256>"
    for cell in cells:
        registers, shared, local, spills = map(int, cell.split("/"))
        assert 4 <= registers <= 32
        # From sm_90 on a kilobyte of each block's shared memory is the system's.
        assert shared - 1024 in (0, 1024) and local == spills == 0


@needs_nvcc
def test_compiled_library_is_read_and_must_hold_every_architecture(tmp_path, capsys):
    source, built = tmp_path / "source.cu", tmp_path / "small.fatbin"
    source.write_text(SMALL)
    command = ["nvcc", "-std=c++20", "-gencode=arch=compute_90,code=sm_90", "-fatbin"]
    subprocess.run([*command, source, "-o", built], check=True)
    assert resources.main(["--arch", "90", "--", str(built)]) == 0
    assert "small.fatbin: small<Tag<2>, 256>" in capsys.readouterr().out
    assert resources.main(["--arch", "80", "90", "--", str(built)]) == 2
    assert "no kernel for sm_80, found ['sm_90']" in capsys.readouterr().err


@needs_nvcc
def test_spill_fails(tmp_path, capsys):
    status, said = run(tmp_path, SPILLING, capsys)
    assert status == 1
    assert "spilling on sm_90" in said.err and "bytes of stack" in said.err


@needs_nvcc
def test_too_much_static_shared_memory_fails(tmp_path, capsys):
    status, said = run(tmp_path, TOO_MUCH_SHARED, capsys)
    assert status != 0
    assert "greedy" in said.err and "0xc000 max" in said.err


@needs_nvcc
def test_source_that_does_not_compile_fails(tmp_path, capsys):
    status, said = run(tmp_path, "__global__ void f() { g(); }", capsys)
    assert status == 2
    assert 'identifier "g" is undefined' in said.err


def test_no_nvcc_is_told(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert resources.main([]) == 2
    assert "no nvcc on the PATH" in capsys.readouterr().err
