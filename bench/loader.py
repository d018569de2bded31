"""``python bench/loader.py``: the share of a training step that goes to its batch of images.

Networks that cost little, on random images as many and as large as MNIST's and CIFAR's, at batch
128: batches alone (images picked, varied, normalised) beside whole steps with them, by turns;
medians of the means of eight, as several may be made at once. What an epoch costs at its start (its
order and variation) is shared out over its steps. By the clock, once the device has finished.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch

from bunit_kernels.metrics import render_table
from bunit_kernels.models import create_model
from bunit_kernels.train.data import ImageData, LabelledImages
from bunit_kernels.train.feed import Feed
from bunit_kernels.train.loop import Learner
from bunit_kernels.train.prepare import prepare_device
from bunit_kernels.train.settings import Settings

#: (network, images, shape of one).
CASES = (
    ("bunit_mlp", 60_000, (1, 28, 28)),
    ("bunit_cnn", 60_000, (1, 28, 28)),
    ("bunit_resnet20", 50_000, (3, 32, 32)),
)

MEAN_OF = 8


def random_data(count: int, shape: tuple[int, int, int]) -> ImageData:
    part = LabelledImages(
        torch.randint(256, (count, *shape), dtype=torch.uint8), torch.randint(10, (count,))
    )
    return ImageData("random", part, part[:1000], tuple(map(str, range(10))))


def measure(
    name: str, data: ImageData, settings: Settings, device: torch.device, rounds: int
) -> dict[str, float]:
    """Seconds of a "batch" and of a "step" with it."""
    torch.manual_seed(0)
    channels, height, width = data.shape
    model = create_model(
        name, num_classes=10, in_channels=channels, image_size=[height, width]
    ).train()
    learner = Learner(name, model, settings, device)
    feed = Feed(data, settings, device, ([0.5] * channels, [0.25] * channels))

    def batches():
        return itertools.chain.from_iterable(map(feed.training, itertools.count()))

    for_steps, alone = batches(), batches()
    samples = {
        "step": lambda: learner.step(*next(for_steps)),
        "batch": lambda: next(alone),  # behind a step, which leaves the caches as it does
    }
    for run in samples.values():
        run()
    means = {what: [] for what in samples}
    starts = []
    for _ in range(rounds):
        total = dict.fromkeys(samples, 0.0)
        for _, (what, run) in itertools.product(range(MEAN_OF), samples.items()):
            total[what] += seconds(run, device)
        for what, values in means.items():
            values.append(total[what] / MEAN_OF)
        starts.append(seconds(lambda: next(feed.training(1)), device))
    medians = {what: statistics.median(values) for what, values in means.items()}
    start = (statistics.median(starts) - medians["batch"]) / feed.steps
    return {what: median + start for what, median in medians.items()}


def seconds(run: Callable, device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="The loader's share of a training step.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--mixup", type=float, default=0.0)
    options = parser.parse_args()
    # What the training program does: on the CPU it keeps freed memory, for batches too.
    device = prepare_device(Settings(device=options.device))
    rows = [("network", "images", "ms a batch", "ms a step", "share")]
    for name, count, shape in CASES:
        settings = Settings(
            model=name, batch_size=options.batch_size, mixup=options.mixup, device=str(device)
        )
        times = measure(name, random_data(count, shape), settings, device, options.rounds)
        rows.append(
            (
                name,
                "x".join(map(str, shape)),
                f"{1e3 * times['batch']:.3f}",
                f"{1e3 * times['step']:.2f}",
                f"{times['batch'] / times['step']:.1%}",
            )
        )
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(render_table(rows))


if __name__ == "__main__":
    main()
