"""What a published result says."""

from __future__ import annotations

from dataclasses import dataclass

MNIST, CIFAR10, CIFAR100, IMAGENET = "MNIST", "CIFAR-10", "CIFAR-100", "ImageNet"
VGG16, MOBILENET_V2 = "VGG-16", "MobileNetV2"
RESNET34, RESNET50, RESNET56, RESNET110 = "ResNet-34", "ResNet-50", "ResNet-56", "ResNet-110"


@dataclass(frozen=True)
class Source:
    text: str
    address: str


@dataclass(frozen=True)
class PrintedScore:
    """TCA and TSA as a table prints them for one pair of weights; ``None`` is an empty cell."""

    w1: float
    w2: float
    tca: float | None
    tsa: float | None


@dataclass(frozen=True)
class Result:
    """A compact network as published: top-1 accuracy, that of the dense network it came from, and
    the shares saved, all in percent. ``None`` is what the source does not say.

    ``table`` is the number of the BUnit-Net paper's table; what follows it in the list of fields is
    for results of that paper alone: the dense network's FLOPs and parameters (such as ``77.95M``),
    the accuracy lost, the theoretical speedup, the scores, and top-5 accuracies of both networks.
    """

    method: str
    year: int | None
    data: str
    network: str
    accuracy: float
    baseline: float | None
    flops_saved: float | None
    parameters_saved: float | None
    source: Source
    table: str | None = None
    baseline_flops: str | None = None
    baseline_parameters: str | None = None
    accuracy_drop: float | None = None
    speedup: float | None = None
    scores: tuple[PrintedScore, ...] = ()
    baseline_top5: float | None = None
    top5: float | None = None

    @property
    def is_bunit(self) -> bool:
        return self.method.startswith("BUnit-Net")
