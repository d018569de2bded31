"""The optimizer of a run, its learning rate over time, and its moving average of weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .settings import Settings


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum, Adam or AdamW. Weight decay is on weights alone, not on biases and norms
    (what has one dimension): a part of the gradient for SGD and Adam, apart from it for AdamW."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    shared = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, momentum=settings.momentum, nesterov=settings.nesterov, **shared
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, eps=settings.epsilon, **shared)


def make_average(model: nn.Module, settings: Settings) -> AveragedModel | None:
    """The exponential moving average of ``model``'s weights and buffers, where one is asked for."""
    if settings.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)


def learning_rate(settings: Settings, epoch: float) -> float:
    """At a time of training, in epochs from its start: linear warm-up, then half a cosine or
    no change."""
    warmup = min(settings.warmup_epochs, settings.epochs)
    if epoch < warmup:
        return settings.lr * epoch / warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (epoch - warmup) / max(settings.epochs - warmup, 1e-9)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
