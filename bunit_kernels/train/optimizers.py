"""The optimizer of a run, its learning rate over time, and its moving average of weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .settings import Settings


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW. Weight decay is on weights alone, not on biases and norms (what
    has one dimension)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def make_average(model: nn.Module, settings: Settings) -> AveragedModel | None:
    """The exponential moving average of ``model``'s weights and buffers, where one is asked for."""
    if settings.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)


def learning_rate(settings: Settings, epoch: float) -> float:
    """At a time of training, in epochs from its start: linear warm-up, then half a cosine."""
    warmup = min(settings.warmup_epochs, settings.epochs)
    if epoch < warmup:
        return settings.lr * epoch / warmup
    progress = (epoch - warmup) / max(settings.epochs - warmup, 1e-9)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
