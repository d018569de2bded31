"""One network's training: steps, epochs, evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import load_weights
from .distill import Teacher
from .distributed import Processes
from .errors import TimeUp, TrainingError, UserError, first_line
from .feed import Feed
from .optimizers import learning_rate, make_average, make_optimizer
from .randomness import seed_step
from .settings import Settings

_CHECK_EVERY = 50  # steps between looks at the loss: on a GPU each look waits for the device


class Learner:
    """A network with its optimizer.

    Attributes:
        model: the module whose parameters are trained.
        average: the moving average of its weights and buffers; ``None`` without ``--ema``.
        history: one dict of figures an epoch.
        batches: how many batches of the current epoch are done.
        totals: sum of their losses, of right answers and of images, of all processes' shares.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        settings: Settings,
        device: torch.device,
        processes: Processes | None = None,
        teacher: Teacher | None = None,
    ):
        memory_format = torch.channels_last if settings.channels_last else torch.preserve_format
        self.name = name
        self.settings = settings
        self.device = device
        self.processes = processes or Processes()
        self.teacher = teacher
        self.history: list[dict] = []
        self.batches = 0
        self.totals = self._zeros()
        trained = self.processes.wrap(model.to(device, memory_format=memory_format))
        self.model: nn.Module = trained.module if trained is not model else model
        self._no_sync: Callable = getattr(trained, "no_sync", nullcontext)
        self.optimizer = make_optimizer(self.model, settings)
        self.average = make_average(self.model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
        if settings.compile:
            trained, model = torch.compile(trained), torch.compile(self.model)
        # Without the wrapper for inference: it would exchange buffers at every call, and processes
        # have different numbers of batches to test.
        self._trained, self._inferred = trained, model

    def start_from(self, state: dict, path: Path) -> None:
        """Takes the weights ``state`` from checkpoint ``path``.

        Raises:
            UserError: the model has other parameters.
        """
        load_weights(self.model, state, path)
        self.average = make_average(self.model, self.settings)

    def restore(self, content: dict, path: Path) -> None:
        """Goes on where checkpoint ``path`` was written.

        Raises:
            UserError: it does not fit the model or the optimizer, or there is no moving average
                in it where one is asked for.
        """
        load_weights(self.model, content["state"], path)
        if self.average is not None:
            if content.get("average") is None:
                raise UserError(f"checkpoint {path} holds no moving average, and --ema asks for it")
            load_weights(self.average.module, content["average"], path)
            self.average.n_averaged.fill_(content["averaged"])
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
        # What an edited state raises is of no one kind.
        except Exception as error:
            raise UserError(
                f"the optimizer's state in checkpoint {path} does not fit: {first_line(error)}"
            ) from error
        self.history, self.batches = content["history"], content["batches"]
        if self.processes.first:  # they are the sums over all processes
            self.totals = content["totals"].to(self.totals)

    def autocast(self) -> torch.autocast:
        """The precision that the settings ask for."""
        dtype = self.settings.amp_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> logits ``[N, classes]``, float32, of the averaged weights where there
        are any, in eval mode, which stays on."""
        self.model.eval()
        network = self._inferred if self.average is None else self.average.module.eval()
        with self.autocast():
            return network(x).float()

    def step(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of training on one batch -> (mean loss, number right), on the device.

        Args:
            labels: classes ``[N]``, or their probabilities ``[N, classes]``.
        """
        found = self.backward(x, labels, 1)
        self.update()
        return found

    def backward(self, x: Tensor, labels: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        """Adds the gradient of one of ``parts`` batches of a step."""
        with self.autocast():
            logits = self._trained(x).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        if self.teacher is not None:
            with self.autocast():
                loss = self.teacher.loss(x, logits, loss)
        self.scaler.scale(loss / parts).backward()
        classes = labels if labels.dim() == 1 else labels.argmax(1)
        return loss.detach(), (logits.detach().argmax(1) == classes).sum()

    def update(self) -> None:
        """Steps the optimizer with the gradients there are, and clears them."""
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def train_epoch(
        self,
        feed: Feed,
        tick: Callable[[], None],
        save: Callable[[], None] | None = None,
        time_up: Callable[[], bool] = lambda: False,
    ) -> dict:
        """Trains to the end of the current epoch and returns its figures.

        Args:
            tick: called after each batch.
            save: called after every ``save_every``-th step, at a place that training can be taken
                up from.
            time_up: asked after every step but the last; where it says so, ``save`` is called.

        Raises:
            TrainingError: the loss is no longer finite. What was saved before is as it was.
            TimeUp: ``time_up`` said so.
        """
        epoch, start, before = len(self.history), time.perf_counter(), self.batches
        accumulate, steps = self.settings.accumulate, 0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for x, labels in feed.training(epoch, self.batches):
            first = self.batches - self.batches % accumulate
            rate = self._set_rate(epoch + first / feed.steps)
            seed_step(self.settings.seed, epoch, self.batches, self.processes.rank)
            parts = min(accumulate, feed.steps - first)
            last = self.batches + 1 == first + parts
            with nullcontext() if last else self._no_sync():
                loss, right = self.backward(x, labels, parts)
            self.totals += self._totals(loss, right, len(x))
            self.batches += 1
            if last:
                self.update()
                steps += 1
                more = self.batches < feed.steps
                self._check_and_save(save if more else None, steps)
                if more and time_up():
                    self._check_loss()
                    if save is not None:
                        save()
                    raise TimeUp
            tick()
        self._check_loss()
        seconds = time.perf_counter() - start
        train_loss, accuracy = self.running()
        test_loss, test_accuracy = self.evaluate(feed)
        if not math.isfinite(test_loss):
            raise self._not_finite("test", test_loss)
        share = (self.batches - before) / feed.steps  # the rest was before the run was resumed
        self.batches, self.totals = 0, self._zeros()
        return {
            "epoch": epoch + 1,
            "lr": rate,
            "train_loss": train_loss,
            "train_accuracy": accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "seconds": seconds / share,
        }

    def running(self, everyone: bool = True) -> tuple[float, float]:
        """(mean loss, accuracy) over the current epoch so far, of all processes (which all have to
        ask) or of this one's share."""
        processes = self.processes if everyone else Processes()
        loss, right, images = processes.total(self.totals.clone()).tolist()
        return loss / max(1, self.batches * processes.world), right / max(1, images)

    def evaluate(self, feed: Feed) -> tuple[float, float]:
        """(mean loss, accuracy) over the test set, in eval mode; each process takes a share."""
        totals = self._zeros()
        for x, labels in feed.testing(share=True):
            logits = self.predict(x)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            totals += self._totals(loss, (logits.argmax(1) == labels).sum(), len(x))
        loss, right, _ = self.processes.total(totals).tolist()
        return loss / len(feed.test), right / len(feed.test)

    def _set_rate(self, epoch: float) -> float:
        rate = learning_rate(self.settings, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _check_and_save(self, save: Callable[[], None] | None, steps: int) -> None:
        every = self.settings.save_every
        due = save is not None and every is not None and steps % every == 0
        if due or steps % _CHECK_EVERY == 0:
            self._check_loss()
        if due:
            save()

    def _check_loss(self) -> None:
        loss, _ = self.running()
        if not math.isfinite(loss):
            raise self._not_finite("training", loss)

    def _not_finite(self, where: str, loss: float) -> TrainingError:
        return TrainingError(
            f"the {where} loss of {self.name} in epoch {len(self.history) + 1} is {loss}; a lower "
            f"--lr than {self.settings.lr:g} or --clip-norm may help"
        )

    def _totals(self, loss: Tensor, right: Tensor, images: int) -> Tensor:
        """What a batch adds to ``totals``; nothing here waits for the device."""
        values = torch.stack([loss, right.float(), torch.full_like(loss, images)])
        return values.to(self.totals)

    def _zeros(self) -> Tensor:
        # float64: counts and sums of a whole epoch. (MPS has none.)
        device = "cpu" if self.device.type == "mps" else self.device
        return torch.zeros(3, dtype=torch.float64, device=device)
