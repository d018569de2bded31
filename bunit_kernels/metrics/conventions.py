"""How FLOPs are counted: 2 x multiply-adds, or as the BUnit-Net paper counts.

``"multiply_adds"``: 2 x the multiply-adds of convolutions and linear maps, as
``torch.utils.flop_counter`` counts them, nothing else. Counters that report MACs print half.

``"paper"``: 2 x (the same multiply-adds, + 1 an output value of a convolution that has a bias, + 2
a value that a BatchNorm gives), hidden levels of stacked layers included; a linear map's bias costs
nothing. This is what older versions of thop count, doubled; as there, biases and norms are those of
modules, so that one applied by a bare function is not seen. Networks count as they are: ``fuse``
turns a BatchNorm (+ 2 a value) into the bias of the convolution before it (+ 1) or of the linear
map before it (+ 0), so that a fused network or stacked layer counts less than what it was made of.
The paper's figures are for networks before ``fuse``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..layout import StackLayout
from .kinds import CONVOLUTIONS, NORMS, stack_layout

MULTIPLY_ADDS, PAPER = "multiply_adds", "paper"
CONVENTIONS = (MULTIPLY_ADDS, PAPER)

_BIAS, _NORM = 2, 4  # the paper's FLOPs a value


def flops_title(convention: str) -> str:
    """What a table calls FLOPs of the convention."""
    return "FLOPs (paper)" if convention == PAPER else "FLOPs"


class FlopCounter:
    """Counts the FLOPs of what ``model`` does within the context.

    Raises:
        ValueError: no such convention.
    """

    def __init__(self, model: nn.Module, convention: str):
        if convention not in CONVENTIONS:
            known = " or ".join(map(repr, CONVENTIONS))
            raise ValueError(f"convention must be {known}, got {convention!r}")
        self._model, self._convention = model, convention
        self._mode = FlopCounterMode(display=False)
        self._more = 0  # beside the multiply-adds
        self._handles = []

    def __enter__(self) -> FlopCounter:
        if self._convention == PAPER:
            for module, count in _find_counts(self._model).items():
                hook = self._hook(count)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        self._mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._mode.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    @property
    def total(self) -> int:
        """FLOPs up to now."""
        return self._mode.get_total_flops() + self._more

    def _hook(self, count: Callable) -> Callable:
        def hook(module, args, kwargs, output):
            inputs = (*args, *kwargs.values())
            self._more += count(module, inputs[0], output)

        return hook


def _find_counts(model: nn.Module) -> dict[nn.Module, Callable]:
    """The modules that cost more than multiply-adds, each with what tells how much."""
    found = {}
    if stack_layout(model) is not None:  # which counts the norms inside, called or folded
        found[model] = _stacked
    elif isinstance(model, CONVOLUTIONS) and model.bias is not None:
        found[model] = lambda module, x, y: _BIAS * y.numel()
    elif isinstance(model, NORMS):
        found[model] = lambda module, x, y: _NORM * y.numel()
    else:
        for child in model.children():
            found |= _find_counts(child)
    return found


def _stacked(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    bias = 0 if layer.biases is None or layer.layout.kernel_size is None else _BIAS
    norms = layer.norms or [None] * layer.layout.depth
    return sum(
        values * (bias + (_NORM if isinstance(norm, NORMS) else 0))
        for values, norm in zip(_level_values(layer, x), norms, strict=True)
    )


def _level_values(layer: nn.Module, x: Tensor) -> list[int]:
    """How many values each level of a stacked layer gives for the input ``x``."""
    layout: StackLayout = layer.layout
    widths = [level.out_channels for level in layout.levels]
    if layout.kernel_size is None:
        rows = x.shape[:-1].numel()
        return [rows * width for width in widths]
    sizes = layer.geometry.level_sizes(*x.shape[-2:])[1:]
    return [len(x) * w * height * width for w, (height, width) in zip(widths, sizes, strict=True)]
