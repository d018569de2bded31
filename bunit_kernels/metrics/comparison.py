"""A compact network beside a dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .conventions import MULTIPLY_ADDS, flops_title
from .counts import count_flops, count_parameters, evaluating, random_batch, saving
from .text import render_table
from .timing import forward, interleaved_medians, sgd_step
from .tradeoffs import tca, tsa


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

    ``accuracy`` and ``dense_accuracy`` are in [0, 1], ``flops`` are for one item by ``convention``,
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
    convention: str = MULTIPLY_ADDS

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
            (
                f"{flops_title(self.convention)} an item",
                self.flops,
                self.dense_flops,
                self.flops_saving,
            ),
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
    convention: str = MULTIPLY_ADDS,
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
        convention: how FLOPs are counted, see ``count_flops``.
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
    flops = {
        name: count_flops(model, input_size, convention=convention)
        for name, model in models.items()
    }
    if accuracy is not None:  # says what is wrong with them before time is spent on measuring
        tca(accuracy, dense_accuracy, 0.0, beta)
    if time:
        batches = {n: random_batch(m, input_size, batch_size) for n, m in models.items()}
        steps = {n: sgd_step(m, batches[n]) for n, m in models.items()}
        training_step = Times(**interleaved_medians(steps, rounds))
        with evaluating(bunit_model), evaluating(dense_model), torch.no_grad():
            runs = {n: forward(m, batches[n]) for n, m in models.items()}
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
        convention=convention,
    )
