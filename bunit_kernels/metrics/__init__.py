"""What a compact network saves: parameters, FLOPs, time, and what that does to its accuracy."""

from .comparison import Comparison, Score, Times, compare
from .counts import count_flops, count_parameters, saving
from .layer_table import LayerRow, LayerTable, layers
from .text import render_table
from .timing import interleaved_medians
from .tradeoffs import WEIGHTS, speedup, tca, tsa
from .unit_outputs import dead_units, unit_outputs, unit_variances

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
    "dead_units",
    "interleaved_medians",
    "layers",
    "render_table",
    "saving",
    "speedup",
    "tca",
    "tsa",
    "unit_outputs",
    "unit_variances",
]
