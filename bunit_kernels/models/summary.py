"""Every bunit network beside its dense counterpart: sizes, savings, and what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..metrics import Comparison, compare
from .registry import create_model, dense_counterpart


@dataclass(frozen=True)
class Row:
    """A network at the size of input and the number of classes that it is compared at.

    ``published`` are the savings of FLOPs and of parameters that the paper reports.
    """

    model: str
    input_size: tuple[int, int, int]
    num_classes: int
    published: tuple[float, float] | None = None
    arguments: dict = field(default_factory=dict)

    def compare(self) -> Comparison:
        """Both networks' parameters and FLOPs; no memory is taken for their weights."""
        arguments = {
            "num_classes": self.num_classes,
            "in_channels": self.input_size[0],
            "image_size": self.input_size[1:],
            **self.arguments,
        }
        with torch.device("meta"):
            bunit = create_model(self.model, **arguments)
            dense = create_model(dense_counterpart(self.model), **arguments)
        return compare(bunit, dense, self.input_size)


_MNIST, _CIFAR, _IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)

ROWS = (
    Row("bunit_mlp", _MNIST, 10, (0.97, 0.96)),
    Row("bunit_lenet", _MNIST, 10),
    Row("bunit_cnn", _CIFAR, 10),
    Row("bunit_vgg16_bn", _CIFAR, 10, (0.7987, 0.7290)),
    Row("bunit_resnet20", _CIFAR, 10),
    Row("bunit_resnet32", _CIFAR, 10),
    Row("bunit_resnet56", _CIFAR, 10),
    Row("bunit_resnet110", _CIFAR, 10),
    Row("bunit_resnet18", _CIFAR, 10),
    Row("bunit_mobilenet_v2", _CIFAR, 10),
    Row("bunit_vgg16_bn", _IMAGENET, 1000),
    Row("bunit_resnet10", _IMAGENET, 1000),
    Row("bunit_resnet18", _IMAGENET, 1000),
    Row("bunit_resnet34", _IMAGENET, 1000),
    Row("bunit_resnet50", _IMAGENET, 1000, (0.4380, 0.4367)),
    Row("bunit_resnet101", _IMAGENET, 1000),
    Row("bunit_mobilenet_v2", _IMAGENET, 1000),
)


def summary_table() -> str:
    """All rows as a Markdown table; FLOPs are 2 x multiply-adds."""
    titles = ("parameters", "dense", "saved", "published", "MFLOPs", "dense", "saved", "published")
    lines = [
        f"| model | input | {' | '.join(titles)} |",
        "|---|---|" + "---:|" * len(titles),
    ]
    for row in ROWS:
        sizes = row.compare()
        published = row.published or (None, None)
        cells = [
            f"`{row.model}`",
            "x".join(map(str, row.input_size)),
            f"{sizes.parameters:,}",
            f"{sizes.dense_parameters:,}",
            _percent(sizes.parameters_saving),
            _percent(published[1]),
            f"{sizes.flops / 1e6:,.2f}",
            f"{sizes.dense_flops / 1e6:,.2f}",
            _percent(sizes.flops_saving),
            _percent(published[0]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
