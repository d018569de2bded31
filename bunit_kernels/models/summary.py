"""Every bunit network beside its dense counterpart: sizes and savings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..metrics import Comparison, compare
from .registry import create_model, dense_counterpart


@dataclass(frozen=True)
class Row:
    """A network at the size of input and the number of classes that it is compared at."""

    model: str
    input_size: tuple[int, int, int]
    num_classes: int

    def compare(self) -> Comparison:
        """Both networks' parameters and FLOPs; no memory is taken for their weights."""
        arguments = {
            "num_classes": self.num_classes,
            "in_channels": self.input_size[0],
            "image_size": self.input_size[1:],
        }
        with torch.device("meta"):
            bunit = create_model(self.model, **arguments)
            dense = create_model(dense_counterpart(self.model), **arguments)
        return compare(bunit, dense, self.input_size)


_MNIST, _CIFAR, _TINY, _IMAGENET = (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)

ROWS = (
    Row("bunit_mlp", _MNIST, 10),
    Row("bunit_lenet", _MNIST, 10),
    Row("bunit_cnn", _CIFAR, 10),
    Row("bunit_vgg16", _CIFAR, 10),
    Row("bunit_vgg16_bn", _CIFAR, 10),
    Row("bunit_resnet20", _CIFAR, 10),
    Row("bunit_resnet32", _CIFAR, 10),
    Row("bunit_resnet56", _CIFAR, 10),
    Row("bunit_resnet110", _CIFAR, 10),
    Row("bunit_resnet20_256", _CIFAR, 10),
    Row("bunit_resnet18", _CIFAR, 10),
    Row("bunit_mobilenet_v2", _CIFAR, 10),
    Row("bunit_shufflenet_v2", _CIFAR, 100),
    Row("bunit_vgg19", _TINY, 200),
    Row("bunit_vgg16_bn", _IMAGENET, 1000),
    Row("bunit_resnet10", _IMAGENET, 1000),
    Row("bunit_resnet18", _IMAGENET, 1000),
    Row("bunit_resnet34", _IMAGENET, 1000),
    Row("bunit_resnet50", _IMAGENET, 1000),
    Row("bunit_resnet101", _IMAGENET, 1000),
    Row("bunit_mobilenet_v2", _IMAGENET, 1000),
    Row("bunit_efficientnet_b0", _IMAGENET, 1000),
)


def summary_table() -> str:
    """All rows as a Markdown table; FLOPs are 2 x multiply-adds."""
    titles = ("parameters", "dense", "saved", "MFLOPs", "dense", "saved")
    lines = [
        f"| model | input | {' | '.join(titles)} |",
        "|---|---|" + "---:|" * len(titles),
    ]
    for row in ROWS:
        sizes = row.compare()
        cells = [
            f"`{row.model}`",
            "x".join(map(str, row.input_size)),
            f"{sizes.parameters:,}",
            f"{sizes.dense_parameters:,}",
            f"{sizes.parameters_saving:.2%}",
            f"{sizes.flops / 1e6:,.2f}",
            f"{sizes.dense_flops / 1e6:,.2f}",
            f"{sizes.flops_saving:.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
