"""``python bench/recompute.py``: what making the first level's output again costs and saves.

A training step of each convolutional workload on the CPU, that output kept and made again by turns
in one process, and the bytes that autograd keeps between forward and backward (inputs, outputs of
levels, statistics, parameters). ``Cpp.recomputes`` in bunit_kernels/backends/cpp.py is the rule
that came of it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from workloads import WORKLOADS, Case, make_case

from bunit_kernels import backend
from bunit_kernels.backends.cpp import Cpp

WAYS = {"kept": False, "made again": True}


def step(case: Case) -> float:
    """Seconds of forward and backward."""
    start = time.perf_counter()
    case.layer(case.x).backward(case.grad)
    return time.perf_counter() - start


def kept_bytes(case: Case) -> int:
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case.layer(case.x)
    return sum(kept.values())


def row(case: Case, rounds: int) -> str:
    rule, times, kept = Cpp.recomputes, {way: [] for way in WAYS}, {}
    try:
        for i in range(rounds + 1):
            for way in sorted(WAYS, reverse=i % 2 > 0):
                Cpp.recomputes = lambda self, x, geometry, way=way: WAYS[way]
                times[way].append(step(case))
                if way not in kept:
                    kept[way] = kept_bytes(case)
    finally:
        Cpp.recomputes = rule
    ms = [statistics.median(times[way][1:]) * 1e3 for way in WAYS]
    chosen = "made again" if rule(None, case.x, case.layer.geometry) else "kept"
    cells = [f"{t:8.2f} ms {kept[way] / 1e6:7.1f} MB" for t, way in zip(ms, WAYS, strict=True)]
    return "".join(f"{cell:>24}" for cell in cells) + f"{ms[0] / ms[1]:8.2f}   {chosen}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{'training step':56}{'kept':>24}{'made again':>24}{'ratio':>8}   auto")
    with backend("cpp"):
        for workload in WORKLOADS:
            if workload.linear:
                continue
            for name, memory_format in (
                ("NCHW", torch.contiguous_format),
                ("channels_last", torch.channels_last),
            ):
                case = make_case(workload, "train")
                case.x = case.x.detach().to(memory_format=memory_format).requires_grad_()
                case.grad = case.grad.to(memory_format=memory_format)
                print(f"{f'{workload.describe()}, {name}':56}" + row(case, rounds), flush=True)


if __name__ == "__main__":
    main()
