"""What each unit of a stacked layer makes of an image, as in the paper's figures 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..units import UnitSpec
from .figures import COLOURS, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEFT, _RIGHT, _EDGE = 1.7, 7.2, 0.15  # inches: the image's column, the units', what is around
_MAP, _LABEL = 0.6, 0.17  # inches: least height of a unit's maps, height of its label
_LETTER = 0.062  # inches that a letter of a label takes
_PIXELS = 24, 64  # of a map's sides as it is drawn: smaller ones are repeated, larger ones averaged
_SHOWN = 0.5, 99.5  # percentiles at the ends of the colour scale: few values are far out
_COLOURS = "viridis"


@dataclass(frozen=True)
class _Sheet:
    """The maps of all units as one picture, NaN between them, and what to write where."""

    values: np.ndarray  # [height, width]
    labels: list[tuple[int, int, int]]  # column, row (in pixels) and number of a unit
    inches: float  # of a pixel


def plot_units(
    image: Tensor,  # [C, H, W] uint8, C is 1 or 3
    outputs: Sequence[Tensor],  # of each unit, [c_out, H', W'] or [c_out]
    units: Sequence[UnitSpec],
    dead: Collection[int] = (),
) -> Figure:
    """The image and, below it, the mean over all channels of the layer; beside them the maps of
    each unit with its number (from 0) and kind, the channels of a unit next to each other.

    All units share one colour scale, so that a unit that puts out a constant is of one colour.
    Those in ``dead`` are labelled so.
    """
    maps = [_resized(y) for y in outputs]
    labels = [
        f"{u}: {unit}{', dead' if u in dead else ''}"
        for u, unit in zip(range(len(maps)), units, strict=True)
    ]
    sheet = _arrange(maps, _LETTER * (2 + max(map(len, labels))))
    rows, columns = sheet.values.shape
    width, height = _LEFT + columns * sheet.inches, rows * sheet.inches
    side = _LEFT - 0.35
    total = max(height, 2 * side + 3 * _LABEL + 0.35) + 2 * _EDGE
    figure = make_figure(width + 2 * _EDGE, total)
    figure.set_layout_engine("none")  # places are given in inches

    def axes(left: float, top: float, width: float, height: float):
        size = width / figure.get_figwidth(), height / total
        return figure.add_axes((left / figure.get_figwidth(), 1 - (top + height) / total, *size))

    low, high = _scale(np.concatenate([m.ravel() for m in maps]))
    panel = axes(_EDGE + _LEFT, _EDGE, columns * sheet.inches, height)
    shown = panel.imshow(sheet.values, _COLOURS, vmin=low, vmax=high, interpolation="nearest")
    for x, y, u in sheet.labels:
        colour = COLOURS[1] if u in dead else "black"
        panel.text(x, y - 1.5, labels[u], fontsize=7, va="bottom", color=colour)
    picture = axes(_EDGE, _EDGE + _LABEL, side, side)
    pixels = image.permute(1, 2, 0).numpy()
    picture.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, "gray", vmin=0, vmax=255)
    whole = axes(_EDGE, _EDGE + 2 * _LABEL + side, side, side)
    whole.imshow(np.concatenate(maps).mean(0), _COLOURS, interpolation="nearest")
    for part, title in ((picture, "image"), (whole, "whole layer, mean")):
        part.set_title(title, fontsize=7, loc="left", pad=2)
    for part in (panel, picture, whole):
        part.set_axis_off()
        part.set_anchor("NW")
    bar = figure.colorbar(
        shown, cax=axes(_EDGE, _EDGE + 3 * _LABEL + 2 * side, side, 0.1), orientation="horizontal"
    )
    bar.set_ticks([low, high], labels=[f"{low:.2g}", f"{high:.2g}"], fontsize=7)
    bar.ax.set_title("a unit's output", fontsize=7, loc="left", pad=2)
    return figure


def _resized(y: Tensor) -> np.ndarray:
    """``[c_out, H', W']`` of a size to draw."""
    y = y.detach().float().cpu()
    y = y[:, None, None] if y.dim() == 1 else y
    least, most = _PIXELS
    height, width = (min(size, most) for size in y.shape[1:])
    y = F.adaptive_avg_pool2d(y, (height, width))
    times = max(1, -(-least // min(height, width)))
    return y.repeat_interleave(times, 1).repeat_interleave(times, 2).numpy()


def _arrange(maps: Sequence[np.ndarray], label: float) -> _Sheet:
    """The units in rows, each as wide as ``label`` inches at least."""
    height, width = maps[0].shape[1:]
    most = max(len(m) for m in maps)
    across = most if most <= 3 else math.ceil(math.sqrt(most))
    down = -(-most // across)
    unit = down * (height + 1) - 1, across * (width + 1) - 1
    inches = min(_MAP / unit[0], _RIGHT / (unit[1] + 4))
    cell = max(unit[1] + 4, math.ceil(label / inches))
    columns = max(1, min(len(maps), int(_RIGHT / inches) // cell))
    line = unit[0] + math.ceil((_LABEL + 0.06) / inches)
    rows = -(-len(maps) // columns)
    values = np.full((rows * line, columns * cell), np.nan, np.float32)
    labels = []
    for u, channels in enumerate(maps):
        top, left = u // columns * line + line - unit[0], u % columns * cell
        labels.append((left, top, u))
        for c, values_of in enumerate(channels):
            y, x = top + c // across * (height + 1), left + c % across * (width + 1)
            values[y : y + height, x : x + width] = values_of
    return _Sheet(values, labels, inches)


def _scale(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, _SHOWN).tolist()
    if low == high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 0.5, low + 0.5)
