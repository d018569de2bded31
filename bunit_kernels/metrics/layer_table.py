"""What each layer of a network holds, does and takes: parameters, FLOPs, bytes, time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from .conventions import MULTIPLY_ADDS, FlopCounter, flops_title
from .counts import count_parameters, evaluating, random_batch, run, uncompiled
from .kinds import describe_kind, stack_layout
from .text import render_table
from .watch import Layer, count_calls, find_layers, time_calls


@dataclass(frozen=True)
class LayerRow:
    """One layer, all its calls of one forward pass together.

    Attributes:
        name: of the module in its network; ``"other"`` for what no row holds.
        stacked: whether it is a stacked layer.
        kind: what it is, such as ``64 x 2-4-2 conv`` or ``conv 3x3``.
        calls: in one forward pass; 0 for a layer that the forward pass does not call.
        output: shape of one item of its last output, ``None`` where it gives no single tensor.
        parameters: learnable values; one shared with an earlier row counts there.
        flops: of one item, by the table's convention.
        bytes: the least memory traffic of one item, as if caches were perfect: every input read
            once, every output written once, every parameter (frozen ones too) read once a call.
        seconds: of a batch, the median over rounds; ``None`` where not measured.
    """

    name: str
    stacked: bool
    kind: str
    calls: int
    output: tuple[int, ...] | None
    parameters: int
    flops: int
    bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class LayerTable:
    """The layers of a network in order of execution. ``str()`` gives a table.

    ``batch_size`` is that of the times, ``None`` where none were measured; ``convention`` is that
    of the FLOPs.
    """

    rows: tuple[LayerRow, ...]
    batch_size: int | None = None
    convention: str = MULTIPLY_ADDS

    @property
    def parameters(self) -> int:
        """Those of the network, as ``count_parameters`` gives them."""
        return sum(row.parameters for row in self.rows)

    @property
    def flops(self) -> int:
        """Those of the network, as ``count_flops`` gives them."""
        return sum(row.flops for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def seconds(self) -> float | None:
        return None if self.batch_size is None else sum(row.seconds for row in self.rows)

    def as_dicts(self) -> list[dict]:
        """One dict a row, of plain values."""
        return [asdict(row) for row in self.rows]

    def table(self) -> str:
        """Plain text, one line a layer and the totals; FLOPs and bytes are of one item."""
        flops = flops_title(self.convention)
        titles = ["layer", "kind", "calls", "output", "parameters", flops, "bytes"]
        lines = [titles if self.batch_size is None else [*titles, "ms a batch"]]
        for row in self.rows:
            output = "" if row.output is None else "x".join(map(str, row.output))
            lines.append([row.name, row.kind, str(row.calls), output, *self._figures(row)])
        lines.append(["total", "", "", "", *self._figures(self)])
        return render_table(lines)

    def _figures(self, of: LayerRow | LayerTable) -> list[str]:
        cells = [f"{value:,}" for value in (of.parameters, of.flops, of.bytes)]
        return cells if self.batch_size is None else [*cells, f"{1e3 * of.seconds:.3f}"]

    def __str__(self) -> str:
        return self.table()


def layers(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    convention: str = MULTIPLY_ADDS,
    time: bool = False,
    batch_size: int = 128,
    rounds: int = 20,
) -> LayerTable:
    """A row for each stacked layer and each other module without modules inside that has
    parameters or FLOPs, in order of execution; the model is left as it was.

    What no such module holds (operations between modules, parameters of modules that have modules
    inside) is the row ``other``, so that the totals are those of ``count_parameters`` and
    ``count_flops``. Modules that the forward pass does not call come last.

    Args:
        input_size: shape of one item, without the batch dimension.
        convention: how FLOPs are counted, see ``count_flops``.
        time: measures each layer's forward pass in eval mode, on ``batch_size`` random items,
            median of ``rounds``. Each layer is waited for before the next starts, so that small
            ones take longer than in a network that runs freely; ``other`` is the rest of the pass.

    Raises:
        ValueError: ``batch_size`` or ``rounds`` is below 1, or see ``count_flops``.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    model = uncompiled(model)
    counter = FlopCounter(model, convention)
    item = random_batch(model, input_size, 1)
    if time and item.is_meta:
        raise ValueError("a model on the meta device cannot be timed: it holds no values")
    found = find_layers(model)
    outside = None
    with evaluating(model), torch.no_grad():
        with counter:
            found = count_calls(found, counter, lambda: run(model, item))
        found = [layer for layer in found if layer.flops or layer.has_parameters]
        if time:
            batch = random_batch(model, input_size, batch_size)
            outside = time_calls(found, lambda: model(batch), rounds)
    rows = _rows(found)
    rest = _rest(rows, count_parameters(model), counter.total, outside)
    if rest.parameters or rest.flops or time:
        rows.append(rest)
    return LayerTable(tuple(rows), batch_size if time else None, convention)


def _rows(found: list[Layer]) -> list[LayerRow]:
    rows, counted = [], set()
    for layer in found:
        new = {p for p in layer.module.parameters() if p.requires_grad} - counted
        counted |= new
        rows.append(
            LayerRow(
                name=layer.name,
                stacked=stack_layout(layer.module) is not None,
                kind=describe_kind(layer.module),
                calls=layer.calls,
                output=layer.output,
                parameters=sum(p.numel() for p in new),
                flops=layer.flops,
                bytes=layer.bytes,
                seconds=statistics.median(layer.seconds) if layer.seconds else None,
            )
        )
    return rows


def _rest(rows: list[LayerRow], parameters: int, flops: int, seconds: float | None) -> LayerRow:
    return LayerRow(
        name="other",
        stacked=False,
        kind="",
        calls=1,
        output=None,
        parameters=parameters - sum(row.parameters for row in rows),
        flops=flops - sum(row.flops for row in rows),
        bytes=0,
        seconds=seconds,
    )
