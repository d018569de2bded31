"""One network's training: steps, epochs, evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import TrainingError
from .feed import Feed, epoch_seed
from .settings import Settings


class Learner:
    """A network with its optimizer.

    SGD with momentum; weight decay on weights alone, not on biases and norms (what has one
    dimension); a learning rate that falls to 0 as half a cosine over all steps, after a linear
    warm-up where one is asked for.

    Attributes:
        model: the plain module, whose parameters are trained.
        history: one dict of figures an epoch.
    """

    def __init__(self, name: str, model: nn.Module, settings: Settings, device: torch.device):
        memory_format = torch.channels_last if settings.channels_last else torch.preserve_format
        self.name = name
        self.model = model.to(device, memory_format=memory_format)
        self.settings = settings
        self.device = device
        self.history: list[dict] = []
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
        self._forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.model) if settings.compile else self.model
        )

    def autocast(self) -> torch.autocast:
        """The precision that the settings ask for."""
        dtype = self.settings.amp_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> logits ``[N, classes]``, float32, in the mode the model is in."""
        with self.autocast():
            return self._forward(x).float()

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> logits ``[N, classes]``, float32, in eval mode, which stays on."""
        self.model.eval()
        return self.forward(x)

    def step(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of training -> (mean loss, number right), on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.forward(x)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        likeliest = labels.argmax(1) if labels.ndim == 2 else labels  # of probabilities: mixup
        return loss.detach(), (logits.detach().argmax(1) == likeliest).sum()

    def train_epoch(self, feed: Feed, tick: Callable[[], None]) -> dict:
        """Trains for the next epoch and returns its figures.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        epoch, start = len(self.history), time.perf_counter()
        torch.manual_seed(epoch_seed(self.settings.seed, epoch))  # for networks with dropout
        self.model.train()
        total = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device, dtype=torch.long)
        for step, (x, labels) in enumerate(feed.training(epoch)):
            rate = learning_rate(self.settings, epoch + step / feed.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, correct = self.step(x, labels)
            total += loss
            right += correct
            tick()
        train_loss = total.item() / feed.steps
        seconds = time.perf_counter() - start
        test_loss, test_accuracy = self.evaluate(feed)
        if not (math.isfinite(train_loss) and math.isfinite(test_loss)):
            raise TrainingError(
                f"the loss of {self.name} in epoch {epoch + 1} is {train_loss} in training and "
                f"{test_loss} in the test; a lower --lr than {self.settings.lr:g} may help"
            )
        return {
            "epoch": epoch + 1,
            "lr": rate,
            "train_loss": train_loss,
            "train_accuracy": right.item() / (feed.steps * feed.batch_size),
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": seconds,
        }

    def evaluate(self, feed: Feed) -> tuple[float, float]:
        """(mean loss, accuracy) over the test set, in eval mode."""
        total = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device, dtype=torch.long)
        for x, labels in feed.testing():
            logits = self.predict(x)
            total += F.cross_entropy(logits, labels, reduction="sum")
            right += (logits.argmax(1) == labels).sum()
        return total.item() / len(feed.test), right.item() / len(feed.test)


def learning_rate(settings: Settings, epoch: float) -> float:
    """At a time of training, in epochs from its start: linear warm-up, then half a cosine."""
    warmup = min(settings.warmup_epochs, settings.epochs)
    if epoch < warmup:
        return settings.lr * epoch / warmup
    progress = (epoch - warmup) / max(settings.epochs - warmup, 1e-9)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
