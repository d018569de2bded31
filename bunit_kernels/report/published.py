"""What the BUnit-Net paper prints, and published results of other methods.

Figures are as printed, in percent; those of the paper are read from the ``paper_*.csv`` files
beside this one, a file a kind of table, misprints included: its text and tables III to VI in
``PAPER``, tables I and II in ``SMALL_NETWORKS``, table VII in ``TIMES``, its two light networks in
``LIGHT_NETWORKS``. Results of other methods in ``PAPER`` are as the paper quotes them; ``PRUNING``
has them as their authors give them.

**They come from other recipes and other copies of the data than those of this project's runs**,
some are the best of several epochs and some start from better networks: compare each with its own
baseline.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ..metrics import WEIGHTS
from .pruning import PRUNING
from .result import PrintedScore, Result, Source

_FOLDER = Path(__file__).parent
_KINDS = "ABCDEF"  # of units, in the order of ``units.PAPER_POOL``

BUNIT = Source(
    "Lan, Cheung, Jiang, Hu, Li, Compact Neural Network via Stacking Hybrid Units, IEEE TPAMI "
    "46(1), 2024, pp. 103-116; other methods as it quotes them",
    "https://doi.org/10.1109/TPAMI.2023.3323496",
)


@dataclass(frozen=True)
class SmallNetwork:
    """A network of table I (MNIST) or II (CIFAR-10).

    ``stacked`` are the numbers of units of kinds A to F in the two stacked layers, of table II
    alone; ``accuracy_std`` is the deviation over five runs, of table I alone.
    """

    table: str
    name: str
    stacked: tuple[tuple[int, ...], ...]
    accuracy: float
    accuracy_std: float | None
    mflops: str
    thousand_parameters: str

    def describe_units(self) -> str:
        """``3 A, 3 B; 4 A, 7 B``: the units of each stacked layer."""
        return "; ".join(
            ", ".join(f"{n} {kind}" for kind, n in zip(_KINDS, counts, strict=True) if n)
            for counts in self.stacked
        )


@dataclass(frozen=True)
class LightNetwork:
    """A network of light operations or its BUnit form, with the printed figures: those of
    ShuffleNetV2 stand under "FLOPs (M)" and "Param (M)", with columns or units swapped; those of
    EfficientNet-B0 are thousands of millions of FLOPs, by their size, and millions of parameters.
    """

    data: str
    network: str
    method: str
    accuracy: float
    flops: float
    parameters: float


@dataclass(frozen=True)
class InferenceTime:
    """Of table VII: milliseconds an image of 32x32 pixels of both networks, and their quotient."""

    network: str
    device: str
    dense_ms: float
    ms: float
    speedup: float


def _rows(name: str) -> list[dict[str, str]]:
    with open(_FOLDER / f"paper_{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _result(row: dict[str, str]) -> Result:
    names = [(w1, w2, f"{w1:g}_{w2:g}") for w1, w2 in WEIGHTS]
    scores = tuple(
        PrintedScore(w1, w2, _number(row[f"tca_{name}"]), _number(row[f"tsa_{name}"]))
        for w1, w2, name in names
    )
    return Result(
        method=row["method"],
        year=2024 if row["method"].startswith("BUnit-Net") else None,
        data=row["data"],
        network=row["network"],
        accuracy=float(row["accuracy"]),
        baseline=float(row["accuracy_base"]),
        flops_saved=float(row["flops_saved"]),
        parameters_saved=_number(row["params_saved"]),
        source=BUNIT,
        table=row["table"],
        baseline_flops=row["flops_base"],
        baseline_parameters=row["params_base"],
        accuracy_drop=_number(row["accuracy_drop"]),
        speedup=_number(row["speedup"]),
        scores=scores,
        baseline_top5=_number(row["top5_base"]),
        top5=_number(row["top5"]),
    )


def _small_network(row: dict[str, str]) -> SmallNetwork:
    counts = [row[name].split() for name in ("stacked1", "stacked2")]
    return SmallNetwork(
        table=row["table"],
        name=row["network"],
        stacked=tuple(tuple(map(int, c)) for c in counts if c),
        accuracy=float(row["accuracy"]),
        accuracy_std=_number(row["accuracy_std"]),
        mflops=row["mflops"],
        thousand_parameters=row["kparams"],
    )


def _floats(row: dict[str, str], *names: str) -> dict:
    return row | {name: float(row[name]) for name in names}


PAPER = tuple(map(_result, _rows("results")))
SMALL_NETWORKS = tuple(map(_small_network, _rows("small_networks")))
LIGHT_NETWORKS = tuple(
    LightNetwork(**_floats(row, "accuracy", "flops", "parameters"))
    for row in _rows("light_networks")
)
TIMES = tuple(InferenceTime(**_floats(row, "dense_ms", "ms", "speedup")) for row in _rows("times"))
PUBLISHED = PAPER + PRUNING
