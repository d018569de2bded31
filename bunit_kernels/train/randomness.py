"""Random numbers that depend on the place in training alone, so that resuming needs no state."""

from __future__ import annotations

import random

import torch

from .errors import require


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seeds every generator that a network may draw from in this step: torch's, on all devices,
    Python's and NumPy's."""
    mixed = random.Random(f"{seed} {epoch} {step} {rank}").getrandbits(48)
    torch.manual_seed(mixed)
    random.seed(mixed)
    require("numpy", "numpy", "training").random.seed(mixed % 2**32)
