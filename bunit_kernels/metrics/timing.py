"""Times of the same work on several networks, measured in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def interleaved_medians(
    runs: dict[str, Callable[[], object]], rounds: int = 20, warmup: int = 3
) -> dict[str, float]:
    """Median seconds of each callable, called in turn, so that a drifting clock hits all alike.

    Raises:
        ValueError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def sgd_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One step of SGD on a copy of ``model`` with random labels."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with torch.no_grad():
        classes = model(x).shape[-1]
    labels = torch.arange(len(x), device=x.device) % classes

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x).float(), labels).backward()
        optimizer.step()

    return step


def forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: model(x)
