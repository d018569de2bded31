"""``python bench/crossover.py``: ``cpp`` against PyTorch's operators by width of unit.

What bunit_kernels/backends/_crossover.py holds: for each operation, with and without gradient, in
both memory formats, the widths at which PyTorch's grouped convolution or ``bmm`` is as fast.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from bunit_kernels import StackedConv2d, StackedLinear, backend

WIDTHS = (2, 4, 8, 16, 32, 64, 128)
CHANNELS = 128
IMAGES = ((16, 28), (64, 8))  # how many, height and width


def seconds(step, rounds: int) -> dict[str, float]:
    """Medians of interleaved rounds of ``step()`` under both backends."""
    taken: dict[str, list[float]] = {"cpp": [], "torch": []}
    for _ in range(rounds):
        for name, times in taken.items():
            with backend(name):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def row(layer, x, grad: bool, rounds: int) -> str:
    def step():
        if not grad:
            with torch.inference_mode():
                return layer(x)
        y = layer(x)
        return torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))

    x.requires_grad_(grad)
    times = seconds(step, rounds)
    return f"{times['torch'] / times['cpp']:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="cpp against PyTorch's operators, by width.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    arguments = parser.parse_args()
    rounds, dtype = arguments.rounds, getattr(torch, arguments.dtype)
    print("how many times the time of cpp PyTorch takes, by width of unit")
    print(f"{'':60}" + "".join(f"{width:8}" for width in WIDTHS))
    for levels, norm, what in ((1, None, "level"), (2, None, "unit"), (2, "batch", "unit, batch")):
        for cl in (False, True):
            for grad in (False, True):
                if norm and not grad:
                    continue
                for batch, side in IMAGES:
                    cells = []
                    for width in WIDTHS:
                        spec = "-".join([str(width)] * (levels + 1))
                        layer = StackedConv2d(spec, CHANNELS // width, norm=norm, dtype=dtype)
                        x = torch.randn(batch, CHANNELS, side, side, dtype=dtype)
                        x = x.contiguous(memory_format=torch.channels_last) if cl else x
                        cells.append(row(layer, x, grad, rounds))
                    name = f"conv {what}, {'channels_last' if cl else 'NCHW'}, {side}x{side}"
                    print(f"{name + (', forward + backward' if grad else ''):60}" + "".join(cells))
    for levels in (1, 2):
        for batch in (128, 1024):
            for grad in (False, True):
                cells = []
                for width in WIDTHS:
                    spec = "-".join([str(width)] * (levels + 1))
                    layer = StackedLinear(spec, 512 // width, dtype=dtype)
                    cells.append(row(layer, torch.randn(batch, 512, dtype=dtype), grad, rounds))
                name = f"linear {'level' if levels == 1 else 'unit'}, batch {batch}"
                print(f"{name + (', forward + backward' if grad else ''):60}" + "".join(cells))


if __name__ == "__main__":
    main()
