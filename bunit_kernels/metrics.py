"""What a compact network saves: parameters, FLOPs, time, and what that does to its accuracy.

FLOPs are 2 x multiply-adds of convolutions and linear layers, as ``torch.utils.flop_counter``
counts them; counters that report MACs print half.

TCA and TSA, the trade-offs of computation and of storage with accuracy, are measures the BUnit-Net
paper proposes. **The formulas here are ours**: the paper's are not at hand, so do not compare these
values with the paper's printed ones.
"""

from __future__ import annotations

import copy
import math
import statistics
import time as _time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .backends import BackendUnavailable


def count_parameters(model: nn.Module) -> int:
    """Learnable values of ``model``; a shared tensor counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_flops(model: nn.Module, input_size: Sequence[int]) -> int:
    """FLOPs of one forward pass over one item, in eval mode; the model is left as it was.

    Args:
        input_size: shape of one item, without the batch dimension: ``(C, H, W)``, or
            ``(features,)``.

    Raises:
        ValueError: ``input_size`` is no such shape, or the model cannot take it.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled module hides its ops from the counter
    x = _batch(model, input_size, 1)
    with _evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            model(x)
        except (NotImplementedError, BackendUnavailable):
            raise  # says what is missing here, not that the shape is wrong
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the model cannot take an item of shape {tuple(input_size)}: {error}"
            ) from error
    return counter.get_total_flops()


def saving(compact: float, dense: float) -> float:
    """``1 - compact / dense``: the share saved; negative where compact needs more.

    Raises:
        ValueError: ``dense`` is not positive or ``compact`` is negative.
    """
    if not dense > 0 or not compact >= 0:
        raise ValueError(f"a saving needs compact >= 0 and dense > 0, got {compact} and {dense}")
    return 1 - compact / dense


def tca(accuracy: float, dense_accuracy: float, flops_saving: float, beta: float = 1.0) -> float:
    """Trade-off of computation with accuracy, in [0, 1]; **our formula, not the paper's**.

    With the retention ``A = min(1, accuracy / dense_accuracy)`` and the saving ``S`` of FLOPs, the
    weighted harmonic mean ``(1 + beta^2) A S / (beta^2 A + S)``: 0 where nothing is saved or
    nothing retained, 1 only where everything is.

    Args:
        accuracy, dense_accuracy: of the compact and the dense network, in [0, 1].
        flops_saving: ``saving`` of FLOPs; below 0 it counts as 0.
        beta: above 1 the saving weighs more, below 1 the accuracy.

    Raises:
        ValueError: an accuracy outside [0, 1], a dense accuracy of 0, a saving above 1, or a
            ``beta`` that is not positive.
    """
    return _harmonic(_retention(accuracy, dense_accuracy), flops_saving, beta)


def tsa(
    accuracy: float, dense_accuracy: float, parameters_saving: float, beta: float = 1.0
) -> float:
    """Trade-off of storage with accuracy: as ``tca``, with the saving of parameters."""
    return _harmonic(_retention(accuracy, dense_accuracy), parameters_saving, beta)


def _retention(accuracy: float, dense_accuracy: float) -> float:
    for name, value in (("accuracy", accuracy), ("dense_accuracy", dense_accuracy)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if dense_accuracy == 0:
        raise ValueError("dense_accuracy must be above 0: nothing can be retained of it")
    return min(1.0, accuracy / dense_accuracy)


def _harmonic(retention: float, saved: float, beta: float) -> float:
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be above 0, got {beta}")
    if not saved <= 1:
        raise ValueError(f"a saving must be at most 1, got {saved}")
    saved = max(0.0, saved)
    weight = beta * beta
    denominator = weight * retention + saved
    return (1 + weight) * retention * saved / denominator if denominator else 0.0


@dataclass(frozen=True)
class Times:
    """Median seconds of the same work on both networks."""

    compact: float
    dense: float

    @property
    def saving(self) -> float:
        return saving(self.compact, self.dense)


@dataclass(frozen=True)
class Comparison:
    """A compact network beside a dense one. What was not measured is ``None``.

    ``accuracy`` and ``dense_accuracy`` are in [0, 1], ``flops`` are for one item,
    ``training_step`` and ``inference`` are times of one batch of ``batch_size`` items.
    """

    parameters: int
    dense_parameters: int
    flops: int
    dense_flops: int
    accuracy: float | None = None
    dense_accuracy: float | None = None
    beta: float = 1.0
    batch_size: int | None = None
    training_step: Times | None = None
    inference: Times | None = None

    @property
    def parameters_saving(self) -> float:
        return saving(self.parameters, self.dense_parameters)

    @property
    def flops_saving(self) -> float:
        return saving(self.flops, self.dense_flops)

    @property
    def accuracy_difference(self) -> float | None:
        """Compact minus dense."""
        if self.accuracy is None or self.dense_accuracy is None:
            return None
        return self.accuracy - self.dense_accuracy

    @property
    def tca(self) -> float | None:
        """See the function ``tca``; ``None`` without accuracies or where the dense one is 0."""
        if self.accuracy is None or not self.dense_accuracy:
            return None
        return tca(self.accuracy, self.dense_accuracy, self.flops_saving, self.beta)

    @property
    def tsa(self) -> float | None:
        """See the function ``tsa``; ``None`` without accuracies or where the dense one is 0."""
        if self.accuracy is None or not self.dense_accuracy:
            return None
        return tsa(self.accuracy, self.dense_accuracy, self.parameters_saving, self.beta)

    @property
    def time_conversion(self) -> float | None:
        """Share of the FLOPs saved that became inference time saved; ``None`` if not known."""
        if self.inference is None or self.flops_saving <= 0:
            return None
        return self.inference.saving / self.flops_saving

    def table(self, names: tuple[str, str] = ("compact", "dense")) -> str:
        """Plain text, one line a figure, under the names of the two networks."""
        rows = [("", *names, "saved")]
        if self.accuracy_difference is not None:
            rows.append(
                (
                    "accuracy",
                    f"{self.accuracy:.2%}",
                    f"{self.dense_accuracy:.2%}",
                    f"{100 * self.accuracy_difference:+.2f} points",
                )
            )
        for label, compact, dense, saved in (
            ("parameters", self.parameters, self.dense_parameters, self.parameters_saving),
            ("FLOPs an item", self.flops, self.dense_flops, self.flops_saving),
        ):
            rows.append((label, f"{compact:,}", f"{dense:,}", f"{saved:.2%}"))
        for label, value in (("TCA", self.tca), ("TSA", self.tsa)):
            if value is not None:
                rows.append((f"{label} (beta {self.beta:g})", f"{value:.4f}", "", ""))
        for label, times in (
            ("ms a training step", self.training_step),
            ("ms an inference batch", self.inference),
        ):
            if times is not None:
                compact, dense = f"{1e3 * times.compact:.3f}", f"{1e3 * times.dense:.3f}"
                rows.append((label, compact, dense, f"{times.saving:.2%}"))
        if self.time_conversion is not None:
            rows.append(("time conversion", f"{self.time_conversion:.3f}", "", ""))
        return render_table(rows)

    def __str__(self) -> str:
        return self.table()


def compare(
    bunit_model: nn.Module,
    dense_model: nn.Module,
    input_size: Sequence[int],
    *,
    accuracy: float | None = None,
    dense_accuracy: float | None = None,
    beta: float = 1.0,
    time: bool = False,
    batch_size: int = 128,
    rounds: int = 20,
) -> Comparison:
    """Sets a compact network beside a dense one; both are left as they were.

    Args:
        input_size: shape of one item, without the batch dimension.
        accuracy, dense_accuracy: in [0, 1], both or none; TCA and TSA need them.
        beta: weight of the saving in TCA and TSA.
        time: measures a training step and an inference batch of ``batch_size`` random items,
            interleaved, median of ``rounds``. The models must return ``[N, classes]``.

    Raises:
        ValueError: only one accuracy, or see ``count_flops`` and ``tca``.
    """
    if (accuracy is None) != (dense_accuracy is None):
        raise ValueError("accuracy and dense_accuracy come together, got only one of them")
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    training_step = inference = None
    models = {"compact": bunit_model, "dense": dense_model}
    flops = {name: count_flops(model, input_size) for name, model in models.items()}
    if accuracy is not None:  # says what is wrong with them before time is spent on measuring
        tca(accuracy, dense_accuracy, 0.0, beta)
    if time:
        batches = {n: _batch(m, input_size, batch_size) for n, m in models.items()}
        steps = {n: _training_step(m, batches[n]) for n, m in models.items()}
        training_step = Times(**interleaved_medians(steps, rounds))
        with _evaluating(bunit_model), _evaluating(dense_model), torch.no_grad():
            runs = {n: _forward(m, batches[n]) for n, m in models.items()}
            inference = Times(**interleaved_medians(runs, rounds))
    return Comparison(
        parameters=count_parameters(bunit_model),
        dense_parameters=count_parameters(dense_model),
        flops=flops["compact"],
        dense_flops=flops["dense"],
        accuracy=accuracy,
        dense_accuracy=dense_accuracy,
        beta=beta,
        batch_size=batch_size if time else None,
        training_step=training_step,
        inference=inference,
    )


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
            _synchronize()
            start = _time.perf_counter()
            run()
            _synchronize()
            if turn >= warmup:
                times[name].append(_time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
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


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: model(x)


def _batch(model: nn.Module, input_size: Sequence[int], batch_size: int) -> Tensor:
    """A batch of fixed random values, on the model's device and of its dtype."""
    size = tuple(input_size) if isinstance(input_size, Sequence) else (input_size,)
    if not 1 <= len(size) <= 3 or any(type(n) is not int or n < 1 for n in size):
        raise ValueError(
            "input_size is the shape of one item without its batch dimension, such as (3, 32, 32) "
            f"or (784,); got {input_size!r}"
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, *size, generator=generator).to(like.device, like.dtype)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within; after it every module is in the mode it was in."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
