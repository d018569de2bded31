"""``python bench/depthwise.py``: ``cpp`` against PyTorch's operators for depthwise levels.

What ``depthwise_prefers_torch`` of bunit_kernels/backends/_crossover.py goes by: PyTorch's time
over ours by kernel size, stride, memory format and dtype, geometric means over ``IMAGES``. Set
glibc's MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to 10000000000, so that what is timed is
kernels and not the system's clearing of pages.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from crossover import seconds

from bunit_kernels import StackedConv2d

IMAGES = ((32, 96, 28), (32, 256, 14), (64, 256, 7), (8, 64, 56), (1, 128, 28))  # N, C, size
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
WORK = ("forward", "forward + backward", "training with norm")


def ratio(work: str, kernel: int, stride: int, dtype, form, image, rounds: int) -> float:
    n, channels, size = image
    norm = "batch" if work == WORK[2] else None
    layer = StackedConv2d("1-1", channels, kernel_size=kernel, stride=stride, norm=norm).to(dtype)
    x = torch.randn(n, channels, size, size, dtype=dtype).to(memory_format=form)
    x.requires_grad_(work != WORK[0])
    grad = torch.randn_like(layer(x))

    def step():
        if work == WORK[0]:
            with torch.inference_mode():
                return layer(x)
        return torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)

    times = seconds(step, rounds)
    return times["torch"] / times["cpp"]


def main() -> None:
    parser = argparse.ArgumentParser(description="cpp against PyTorch's operators, depthwise.")
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print("PyTorch's time over that of cpp")
    for dtype in (torch.float32, torch.bfloat16):
        for work in WORK:
            for kernel in (3, 5, 7):
                for stride in (1, 2):
                    means = [
                        f"{name} "
                        + format(
                            statistics.geometric_mean(
                                ratio(work, kernel, stride, dtype, form, image, rounds)
                                for image in IMAGES
                            ),
                            ".2f",
                        )
                        for name, form in FORMATS.items()
                    ]
                    what = f"{dtype}, {work}, {kernel}x{kernel}, stride {stride}"
                    print(f"{what:60}{', '.join(means)}", flush=True)


if __name__ == "__main__":
    main()
