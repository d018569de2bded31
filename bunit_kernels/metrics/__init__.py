"""What a compact network saves: parameters, FLOPs, time, and what that does to its accuracy."""

from .comparison import Comparison, Score, Times, compare
from .counts import count_flops, count_parameters, saving
from .layer_table import LayerRow, LayerTable, layers
from .text import render_table
from .timing import interleaved_medians
from .tradeoffs import WEIGHTS, speedup, tca, tsa

__all__ = [
    "WEIGHTS",
    "Comparison",
    "LayerRow",
    "LayerTable",
    "Score",
    "Times",
    "compare",
    "count_flops",
    "count_parameters",
    "interleaved_medians",
    "layers",
    "render_table",
    "saving",
    "speedup",
    "tca",
    "tsa",
]
