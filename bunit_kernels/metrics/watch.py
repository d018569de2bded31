"""What goes through the layers of a network in a forward pass: calls, FLOPs, bytes, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .conventions import FlopCounter
from .kinds import stack_layout
from .timing import synchronize

_WARMUP = 3  # forward passes before those that count


@dataclass(eq=False)
class Layer:
    """A module and what was seen of it, all calls of one forward pass together."""

    name: str
    module: nn.Module
    calls: int = 0
    flops: int = 0
    bytes: int = 0
    output: tuple[int, ...] | None = None
    seconds: list[float] = field(default_factory=list)  # one entry a pass

    @property
    def has_parameters(self) -> bool:
        return next(self.module.parameters(), None) is not None


def find_layers(module: nn.Module, name: str = "") -> list[Layer]:
    """The modules that count as one: stacked layers and those with no module inside. One that
    stands in several places is found once, by its first name."""
    if stack_layout(module) is not None or parametrize.is_parametrized(module):
        return [Layer(name, module)]
    children = list(module.named_children())  # which leaves out what it has given already
    if not children:
        return [Layer(name, module)]
    found = {}
    for child_name, child in children:
        for layer in find_layers(child, f"{name}.{child_name}" if name else child_name):
            found.setdefault(layer.module, layer)
    return list(found.values())


def count_calls(layers: list[Layer], counter: FlopCounter, forward: Callable) -> list[Layer]:
    """Notes calls, FLOPs, bytes and output shapes of ``forward()``, which runs under ``counter``.
    Returns the layers in order of their first call, those not called last."""
    called: dict[Layer, None] = {}

    def before(layer, module, args, kwargs):
        called.setdefault(layer)
        layer.flops -= counter.total

    def after(layer, module, args, kwargs, output):
        layer.calls += 1
        layer.flops += counter.total
        moved = (args, kwargs), output, list(module.parameters())
        layer.bytes += sum(map(_bytes, moved))
        layer.output = tuple(output.shape[1:]) if isinstance(output, Tensor) else None

    with _hooked(layers, before, after):
        forward()
    return [*called, *(layer for layer in layers if layer not in called)]


def time_calls(layers: list[Layer], forward: Callable, rounds: int) -> float:
    """Notes the seconds of each layer in each of ``rounds`` calls of ``forward()``; returns the
    median of the seconds spent outside of them."""
    outside = []

    def before(layer, module, args, kwargs):
        synchronize()
        layer.seconds[-1] -= time.perf_counter()

    def after(layer, module, args, kwargs, output):
        synchronize()
        layer.seconds[-1] += time.perf_counter()

    with _hooked(layers, before, after):
        for _ in range(_WARMUP + rounds):
            for layer in layers:
                layer.seconds.append(0.0)
            synchronize()
            start = time.perf_counter()
            forward()
            synchronize()
            whole = time.perf_counter() - start
            outside.append(whole - sum(layer.seconds[-1] for layer in layers))
    for layer in layers:
        del layer.seconds[:_WARMUP]
    return statistics.median(outside[_WARMUP:])


@contextmanager
def _hooked(layers: list[Layer], before: Callable, after: Callable) -> Iterator[None]:
    handles = []
    try:
        for layer in layers:
            start, end = partial(before, layer), partial(after, layer)
            handles.append(layer.module.register_forward_pre_hook(start, with_kwargs=True))
            handles.append(layer.module.register_forward_hook(end, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bytes(value: object) -> int:
    """Of all tensors in ``value``, each once."""
    tensors = {id(tensor): tensor for tensor in _tensors(value)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
