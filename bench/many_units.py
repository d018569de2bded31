"""Training steps of layers of 1,000 to 100,000 units, a column a unit: what a unit takes is to stay
the same, however many there are.

    OMP_NUM_THREADS=1 python bench/many_units.py
"""

from __future__ import annotations

import time

import torch

from bunit_kernels import StackedConv2d, backend

COUNTS = (1_000, 4_000, 16_000, 100_000)


def step_time(count: int, shuffle: bool) -> float:
    """Seconds of a forward and backward pass of ``count`` units 1-2-1 on 4 images of 4x4, the best
    of three."""
    layer = StackedConv2d("1-2-1", count, shuffle=shuffle)
    x = torch.randn(4, count, 4, 4, requires_grad=True)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    print("| units | training step, ms | a unit, us | shuffled, ms | a unit, us |")
    print("|---:|---:|---:|---:|---:|")
    with backend("cpp"):
        for count in COUNTS:
            cells = []
            for shuffle in (False, True):
                seconds = step_time(count, shuffle)
                cells += [f"{seconds * 1e3:.1f}", f"{seconds / count * 1e6:.2f}"]
            print(f"| {count:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
