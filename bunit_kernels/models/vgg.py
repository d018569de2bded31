"""VGG-16 with batch norm (Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, form_of, height_and_width
from .initialise import initialise
from .registry import register_model
from .tables import NORMAL, Table, expand_table, fit_units

#: Width of each stage, and its 3x3 convolutions; a max pool follows each stage.
_STAGES = {
    "stage1": (64, 2), "stage2": (128, 2), "stage3": (256, 3), "stage4": (512, 3),
    "stage5": (512, 3),
}  # fmt: skip

#: Which convolutions are stacked, **our choice**: the paper's table is not known to us. Found by
#: counting tables of 2-4-m units, 3x3 and 1x1 normal layers, with no three stacked layers in a row:
#: a normal layer opens every stage and mixes what the stacked layers before it gave. That of
#: stage 3 is a 1x1 convolution, which brings the savings within half a point of the paper's.
VGG16_UNITS: Table = {
    "stage1": (NORMAL, "2-4-m"),
    "stage2": (NORMAL, "2-4-m"),
    "stage3": ("1x1", "2-4-m", "2-4-m"),
    "stage4": (NORMAL, "2-4-m", "2-4-m"),
    "stage5": (NORMAL, "2-4-m", "2-4-m"),
}


@register_model(dense="vgg16_bn")
def bunit_vgg16_bn(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | None = None,
) -> nn.Module:
    """VGG-16 with batch norm, most of its 3x3 convolutions (with norm and ReLU) stacked layers.

    With 32x32 pixels and 10 classes 80.15 % of the FLOPs and 72.42 % of the parameters are saved;
    the paper reports 79.87 % and 72.90 %. There are no shortcuts: stacked layers begin near the
    identity (:mod:`bunit_kernels.models.initialise`).

    Args:
        image_size: at least 32 on each side, for the five pools.
        form: ``"imagenet"`` for the classifier of three linear layers over 7x7 pixels, ``"cifar"``
            for two linear layers of 512 over one; ``None`` for ``"cifar"`` where neither side of
            the image is above 64.
        units: which of each stage's convolutions are stacked (:mod:`bunit_kernels.models.tables`);
            ``"1x1"`` makes one a normal layer of kernel size 1. ``VGG16_UNITS`` by default.
    """
    units = VGG16_UNITS if units is None else units
    return VGG(units, num_classes, in_channels, form_of(form, image_size), image_size)


@register_model()
def vgg16_bn(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | None = None,
) -> nn.Module:
    """The dense VGG-16 with batch norm; ``units`` changes nothing. See ``bunit_vgg16_bn``."""
    return VGG({}, num_classes, in_channels, form_of(form, image_size), image_size)


class VGG(nn.Module):
    """See ``bunit_vgg16_bn``; keys of its ``state_dict`` are torchvision's where it is dense.

    Shape: [N, in_channels, H, W] -> [N, num_classes], H and W at least 32.
    """

    def __init__(
        self, units: Table, num_classes: int, in_channels: int, form: str, image_size: ImageSize
    ):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        if min(height_and_width(image_size)) < 32:
            raise ValueError(
                f"image_size must be at least 32 for VGG-16's five pools, got {image_size!r}"
            )
        plan = expand_table(units, {stage: convs for stage, (_, convs) in _STAGES.items()})
        self.units = plan
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, entries in plan.items():
            width = _STAGES[stage][0]
            for entry in entries:
                layers += _layer(entry, channels, width)
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7 if form == "imagenet" else 1)
        head = _imagenet_head if form == "imagenet" else _cifar_head
        self.classifier = head(channels, num_classes)
        initialise(self, linear_std=0.01, near_identity=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _layer(entry: str, in_channels: int, out_channels: int) -> list[nn.Module]:
    if entry not in (NORMAL, "1x1"):
        return [StackedConv2d(*fit_units(entry, in_channels, out_channels))]
    k = 1 if entry == "1x1" else 3
    conv = nn.Conv2d(in_channels, out_channels, k, padding=k // 2)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _imagenet_head(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, num_classes),
    )  # fmt: skip


def _cifar_head(channels: int, num_classes: int) -> nn.Sequential:
    """As the pruning literature has it (14.99 million parameters in all)."""
    return nn.Sequential(
        nn.Linear(channels, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
        nn.Linear(512, num_classes),
    )  # fmt: skip
