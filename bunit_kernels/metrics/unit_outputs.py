"""What each unit of a stacked layer puts out, and which put out hardly anything but a constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..shuffle import unshuffled
from .counts import evaluating, run, uncompiled
from .kinds import stack_layout, stacked_layer, stacked_layers


def unit_outputs(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, ...]:
    """The output of each unit of a stacked layer, in eval mode; the model is left as it was.

    What a residual block adds to the layer's output is no unit's, and not in it.

    Args:
        x: a batch as the model takes it; it is moved to the model's device.
        layer: the layer's name in ``model.named_modules()``.

    Returns:
        One tensor a unit, ``[N, c_out, H, W]`` (``[N, c_out]`` of linear units), of the layer's
        last call.

    Raises:
        ValueError: the model has no module of that name, it is not stacked or is not called, or
            the model cannot take ``x``.
    """
    model = uncompiled(model)
    stacked_layer(model, layer)
    found: dict[str, Tensor] = {}
    with torch.no_grad(), evaluating(model), _watched(model, [layer], found.__setitem__):
        run(model, x.to(_device(model)))
    if layer not in found:
        raise ValueError(f"layer {layer!r} is not called in a forward pass of the model")
    return split_units(model.get_submodule(layer), found[layer])


def split_units(layer: nn.Module, y: Tensor) -> tuple[Tensor, ...]:
    """A stacked layer's output ``[N, C, H, W]`` (``[..., C]`` of a linear one) -> each unit's."""
    layout, axis = stack_layout(layer), _channel_axis(layer)
    if layout.shuffle:
        y = unshuffled(y, layout.out_widths, axis)
    return y.split(layout.out_widths, axis)


def _channel_axis(layer: nn.Module) -> int:
    return -1 if stack_layout(layer).kernel_size is None else 1


def unit_variances(
    model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]]
) -> dict[str, tuple[float, ...]]:
    """How much each unit's output varies, relative to its layer's units; see ``dead_units``.

    A channel's variance is that of all its values: over pixels and items of all batches, about
    their mean. With ``v_u`` the mean of it over the channels that unit ``u`` puts out, the unit's
    relative variance is ``v_u / mean(v)``, the mean over the units of its layer: 1 for units that
    all vary alike, 0 for a constant one. Where all of a layer is constant, 0.

    Args:
        batches: batches as the model takes them, or tuples and lists of which it takes the first,
            such as a ``DataLoader`` of images and labels gives. It is run in eval mode and left as
            it was.

    Returns:
        One value a unit for each stacked layer that is called, by the layer's name.

    Raises:
        ValueError: no batch, one that the model cannot take, or outputs that are not finite.
        TypeError: a batch is no tensor and has none first.
    """
    model = uncompiled(model)
    layers = stacked_layers(model)
    moments: dict[str, _Moments] = {}

    def add(name: str, y: Tensor) -> None:
        axis = _channel_axis(layers[name])
        values = torch.cat(split_units(layers[name], y), axis).transpose(0, axis).flatten(1)
        moments.setdefault(name, _Moments()).add(values)

    count = 0
    with torch.no_grad(), evaluating(model), _watched(model, layers, add):
        for batch in batches:
            x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"a batch must be a tensor, or a tuple that has one first, got {type(batch)}"
                )
            if len(x) > 0:
                run(model, x.to(_device(model)))
            count += len(x)
    if count == 0:
        raise ValueError("the variances of units need at least one item, got no batch with one")
    return {name: _relative(name, layers[name], found.variance) for name, found in moments.items()}


def dead_units(
    model: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]],
    *,
    threshold: float = 0.01,
) -> dict[str, tuple[int, ...]]:
    """The units whose output is nearly the same for any input: those whose relative variance
    (``unit_variances``) is below ``threshold``.

    By figures 4 and 5 of the paper (Lan et al. 2024) units whose maps are nearly of one colour for
    any image have learned nothing, and are to be replaced; :func:`bunit_kernels.nn.replace_units`
    takes what this returns. The measure is ours.

    Returns:
        Numbers of the dead units, ascending, for each stacked layer that is called.

    Raises:
        ValueError: ``threshold`` is not above 0 and finite, or see ``unit_variances``.
    """
    check_threshold(threshold)
    return {
        name: below(values, threshold) for name, values in unit_variances(model, batches).items()
    }


def below(variances: Iterable[float], threshold: float) -> tuple[int, ...]:
    """Numbers of the units of a layer whose relative variance is below ``threshold``."""
    return tuple(u for u, value in enumerate(variances) if value < threshold)


def check_threshold(threshold: float) -> None:
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold must be above 0 and finite, got {threshold}")


class _Moments:
    """Number, mean and sum of squared deviations of each channel, batch after batch (Chan, Golub
    and LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances)."""

    def __init__(self):
        self.count: int = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """``values``: ``[C, n]``, of floats of any precision; sums are float64."""
        n = values.shape[1]
        values = values if values.dtype == torch.float64 else values.float()
        var, mean = (v.cpu().double() for v in torch.var_mean(values, 1, correction=0))
        total = self.count + n
        change = mean - self.mean
        self.squares = self.squares + var * n + change.square() * (self.count * n / total)
        self.mean = self.mean + change * (n / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """``[C]`` float64."""
        return self.squares / self.count


def _relative(name: str, layer: nn.Module, variance: Tensor) -> tuple[float, ...]:
    if not variance.isfinite().all():
        raise ValueError(f"layer {name!r} puts out values that are not finite")
    widths = stack_layout(layer).levels[-1].out_widths
    units = torch.stack([channels.mean() for channels in variance.split(widths)])
    return tuple((units / units.mean() if units.any() else units).tolist())


@contextmanager
def _watched(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Gives ``see`` the name and the output of each of the stacked layers at each call."""

    def after(name, layer, args, kwargs, output):
        if len(args) > 1 or kwargs.get("residual") is not None:
            # Not layer(...): that would come here again.
            output = layer.forward(args[0] if args else kwargs["x"])
        see(name, output)

    handles = []
    try:
        for name in names:
            layer = model.get_submodule(name)
            hook = partial(after, name)
            handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
