"""The paper's networks, counted by its own convention beside what it prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..metrics import Comparison, compare
from .mobilenet import MOBILENET_V2_CIFAR100_UNITS
from .registry import create_model, dense_counterpart
from .shufflenet import SHUFFLENET_V2_LARGER_UNITS

_MNIST, _CIFAR, _TINY, _IMAGENET = (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224)


@dataclass(frozen=True)
class PaperNetwork:
    """A network of the paper (Lan et al., 2024, doi 10.1109/TPAMI.2023.3323496), and ours for it.

    Attributes:
        name: the paper's.
        model, arguments: what ``create_model`` takes, beside the classes and the image's shape.
        printed: the dense network's FLOPs and parameters in millions.
        saved: printed shares of FLOPs and parameters saved, in percent; of ShuffleNetV2 and
            EfficientNet-B0 what the printed sizes come to.
        units: where the unit table comes from.
    """

    name: str
    model: str
    input_size: tuple[int, int, int]
    num_classes: int
    printed: tuple[float, float]
    saved: tuple[float, float]
    units: str
    arguments: dict = field(default_factory=dict)

    @cached_property
    def sizes(self) -> Comparison:
        """Both networks counted by the paper's convention, without memory for their weights."""
        arguments = {
            "num_classes": self.num_classes,
            "in_channels": self.input_size[0],
            "image_size": self.input_size[1:],
            **self.arguments,
        }
        with torch.device("meta"):
            bunit = create_model(self.model, **arguments)
            dense = create_model(dense_counterpart(self.model), **arguments)
        return compare(bunit, dense, self.input_size, convention="paper")

    @property
    def differences(self) -> tuple[float, float]:
        """Points by which our savings of FLOPs and of parameters exceed the printed ones."""
        sizes = self.sizes
        counted = (sizes.flops_saving, sizes.parameters_saving)
        flops, parameters = (100 * c - s for c, s in zip(counted, self.saved, strict=True))
        return flops, parameters


_OURS = "our choice"
_OTHER = "those for CIFAR-10, the paper's are others"

PAPER_NETWORKS = (
    PaperNetwork("MLP, MNIST", "bunit_mlp", _MNIST, 10, (1.09, 0.55), (97, 96),
                 "2-h-2 printed, h our choice"),
    PaperNetwork("VGG-16, CIFAR-10", "bunit_vgg16", _CIFAR, 10, (77.95, 14.91), (79.87, 72.90),
                 "as we reconstruct it"),
    PaperNetwork("VGG-16, CIFAR-100", "bunit_vgg16", _CIFAR, 100, (78.01, 14.96), (73.05, 70.26),
                 _OTHER),
    PaperNetwork("ResNet-20, CIFAR-10", "bunit_resnet20_256", _CIFAR, 10, (94.18, 8.52),
                 (55.02, 49.35), "network and units our choice"),
    PaperNetwork("ResNet-20 r, CIFAR-10", "bunit_resnet20_256", _CIFAR, 10, (94.18, 8.52),
                 (40.34, 32.67), "network and units our choice", {"units": "r"}),
    PaperNetwork("ResNet-20, CIFAR-100", "bunit_resnet20_256", _CIFAR, 100, (94.19, 8.54),
                 (57.46, 62.56), _OTHER),
    PaperNetwork("MobileNetV2, CIFAR-10", "bunit_mobilenet_v2", _CIFAR, 10, (134.95, 2.25),
                 (38.56, 36.81), _OURS, {"form": "paper"}),
    PaperNetwork("MobileNetV2, CIFAR-100", "bunit_mobilenet_v2", _CIFAR, 100, (135.19, 2.37),
                 (62.61, 60.48), f"{_OURS}, `MOBILENET_V2_CIFAR100_UNITS`",
                 {"form": "paper", "units": MOBILENET_V2_CIFAR100_UNITS}),
    PaperNetwork("ShuffleNetV2, CIFAR-100", "bunit_shufflenet_v2", _CIFAR, 100, (91.30, 1.36),
                 (6.60, 8.09), f"{_OURS}, `SHUFFLENET_V2_LARGER_UNITS`",
                 {"units": SHUFFLENET_V2_LARGER_UNITS}),
    PaperNetwork("ShuffleNetV2, CIFAR-100, smaller", "bunit_shufflenet_v2", _CIFAR, 100,
                 (91.30, 1.36), (14.13, 21.32), _OURS),
    PaperNetwork("VGG-19, Tiny-ImageNet", "bunit_vgg19", _TINY, 200, (9500, 20.32),
                 (63.42, 54.63), _OURS),
    PaperNetwork("ResNet-34, ImageNet", "bunit_resnet34", _IMAGENET, 1000, (7340, 21.80),
                 (42.05, 35.31), _OURS),
    PaperNetwork("ResNet-50, ImageNet", "bunit_resnet50", _IMAGENET, 1000, (8220, 25.56),
                 (43.80, 43.67), _OURS),
    PaperNetwork("ResNet-50 r, ImageNet", "bunit_resnet50", _IMAGENET, 1000, (8220, 25.56),
                 (25.0, 15.54), "reading of r and units our choice", {"units": "r"}),
    PaperNetwork("EfficientNet-B0, ImageNet", "bunit_efficientnet_b0", _IMAGENET, 1000,
                 (780, 5.32), (17.95, 8.83), _OURS),
)  # fmt: skip


def paper_table() -> str:
    """``PAPER_NETWORKS`` as a Markdown table; printed figures beside ours, differences of the
    savings in points."""
    titles = (
        "dense M parameters", "printed", "dense MFLOPs", "printed", "parameters saved", "printed",
        "points", "FLOPs saved", "printed", "points",
    )  # fmt: skip
    lines = [
        f"| paper's network | here | {' | '.join(titles)} | units |",
        "|---|---|" + "---:|" * len(titles) + "---|",
    ]
    for network in PAPER_NETWORKS:
        sizes, (flops, parameters) = network.sizes, network.differences
        dense_flops, dense_parameters = network.printed
        cells = [
            network.name,
            _call(network),
            f"{sizes.dense_parameters / 1e6:.2f}",
            f"{dense_parameters:.2f}",
            f"{sizes.dense_flops / 1e6:.2f}",
            f"{dense_flops:.2f}",
            f"{sizes.parameters_saving:.2%}",
            f"{network.saved[1]:.2f}%",
            f"{parameters:+.2f}",
            f"{sizes.flops_saving:.2%}",
            f"{network.saved[0]:.2f}%",
            f"{flops:+.2f}",
            network.units,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _call(network: PaperNetwork) -> str:
    """The model and those of its arguments that a reader would type."""
    short = [f"{k}={v!r}" for k, v in network.arguments.items() if isinstance(v, str)]
    return f"`{', '.join([network.model, *short])}`"
