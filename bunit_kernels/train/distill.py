"""Distillation: a trained network's logits as a second target."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import build_model, check_data, load_checkpoint
from .data import ImageData
from .errors import UserError
from .feed import Feed
from .settings import Settings


class Teacher:
    """A network in eval mode, and how much it counts.

    The loss is ``(1 - a) L + a T^2 KL(teacher / T || student / T)`` with the loss ``L`` on the
    labels, the weight ``a`` and the temperature ``T`` (Hinton, Vinyals and Dean, "Distilling the
    Knowledge in a Neural Network", 2015).
    """

    def __init__(self, model: nn.Module, weight: float, temperature: float):
        self.model = model.eval().requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def loss(self, x: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The mixed loss of a batch ``[N, C, H, W]`` with the student's logits ``[N, classes]`` and
        its loss on the labels."""
        with torch.no_grad():
            target = self.model(x).float() / self.temperature
        student = F.log_softmax(logits / self.temperature, 1)
        divergence = F.kl_div(
            student, F.log_softmax(target, 1), reduction="batchmean", log_target=True
        )
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence


def load_teacher(
    settings: Settings, data: ImageData, feed: Feed, device: torch.device
) -> Teacher | None:
    """The teacher that the settings name.

    Raises:
        UserError: it cannot be read, or takes other images, classes or a normalisation of its own.
    """
    if settings.teacher is None:
        return None
    path = Path(settings.teacher)
    content = load_checkpoint(path)
    check_data(content, path, data)
    close = all(
        torch.allclose(torch.tensor(content[name]), torch.tensor(given), rtol=1e-3, atol=1e-5)
        for name, given in (("mean", feed.mean), ("deviation", feed.deviation))
    )
    if not close:
        raise UserError(
            f"teacher {path} was trained on images of mean {content['mean']} and deviation "
            f"{content['deviation']}; those of {data.name} are {feed.mean} and {feed.deviation}"
        )
    model = build_model(content, path).to(device)
    return Teacher(model, settings.teacher_weight, settings.temperature)
