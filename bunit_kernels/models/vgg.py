"""VGG with batch norm (Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015): the usual
VGG-16, here ``vgg16_bn``, and the VGG-16 and VGG-19 of the BUnit paper, ``vgg16`` and ``vgg19``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, form_of, height_and_width
from .initialise import initialise
from .registry import register_model
from .tables import NORMAL, Table, choose_table, expand_table, fit_units

#: Width of each stage, and its 3x3 convolutions; a max pool follows each stage.
Stages = Mapping[str, tuple[int, int]]

_WIDTHS = (64, 128, 256, 512, 512)


def _stages(*convolutions: int) -> Stages:
    pairs = zip(_WIDTHS, convolutions, strict=True)
    return {f"stage{i}": pair for i, pair in enumerate(pairs, 1)}


_VGG16_BN, _VGG16, _VGG19 = _stages(2, 2, 3, 3, 3), _stages(3, 3, 3, 3, 3), _stages(3, 3, 4, 4, 4)

#: In a table of units: nothing in this convolution's place, the stacked layer before it stands for
#: it too.
NONE = "none"

_HYBRID = "3 x 2-4-m + 1 x 2-5-m"

#: BUnit-VGG-16 **as we reconstruct it**: the paper says that one stacked layer, which stands for
#: consecutive convolutions, and one normal layer alternate, but has no table. One of each a stage,
#: with units 2-h-2 of 4.25 hidden channels on average, saves what it prints within 0.03 points.
VGG16_UNITS: Table = dict.fromkeys(_VGG16, (NORMAL, _HYBRID, NONE))

#: BUnit-VGG-19, **our choice**: there is no published table. The same units, normal layers between
#: them, in the places that save closest to what the paper prints.
VGG19_UNITS: Table = {
    "stage1": (NORMAL, _HYBRID, _HYBRID),
    "stage2": (NORMAL, _HYBRID, NORMAL),
    "stage3": (NORMAL, _HYBRID, _HYBRID, _HYBRID),
    "stage4": (NORMAL, _HYBRID, NORMAL, _HYBRID),
    "stage5": (NORMAL, _HYBRID, NORMAL, _HYBRID),
}

#: Which convolutions of the usual VGG-16 are stacked, **our choice**: this network is not the
#: paper's. A normal layer opens every stage and mixes what the stacked layers before it gave; that
#: of stage 3 is a 1x1 convolution, so that about as much is saved as by the paper's network.
VGG16_BN_UNITS: Table = {
    "stage1": (NORMAL, "2-4-m"),
    "stage2": (NORMAL, "2-4-m"),
    "stage3": ("1x1", "2-4-m", "2-4-m"),
    "stage4": (NORMAL, "2-4-m", "2-4-m"),
    "stage5": (NORMAL, "2-4-m", "2-4-m"),
}


@register_model(dense="vgg16")
def bunit_vgg16(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    units: Table | str | None = None,
) -> nn.Module:
    """The paper's VGG-16 with one normal and one stacked layer in each of its five stages.

    As we reconstruct it (``VGG16_UNITS``): with 32x32 pixels and 10 classes, counted as the paper
    counts, 79.85 % of the FLOPs and 72.91 % of the parameters are saved; it prints 79.87 % and
    72.90 %. Stacked layers begin near the identity (:mod:`bunit_kernels.models.initialise`), as
    there are no shortcuts.

    Args:
        image_size: at least 32 on each side, for the five pools.
        units: which of each stage's convolutions are stacked (:mod:`bunit_kernels.models.tables`);
            ``"1x1"`` makes one a normal layer of kernel size 1, ``"none"`` leaves one out;
            ``"r"`` for normal first and last stages. ``VGG16_UNITS`` by default.
    """
    units = choose_table(units, VGG16_UNITS, tuple(_VGG16))
    return VGG(_VGG16, units, num_classes, in_channels, image_size, 1, nn.Linear)


@register_model()
def vgg16(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    units: Table | str | None = None,
) -> nn.Module:
    """The dense VGG-16 of the paper: three convolutions in each of five stages, with bias,
    BatchNorm and ReLU, average pooling and one linear map; 14,913,162 parameters with 10 classes.
    The paper does not say so, its printed sizes do. ``units`` changes nothing."""
    return VGG(_VGG16, {}, num_classes, in_channels, image_size, 1, nn.Linear)


@register_model(dense="vgg19")
def bunit_vgg19(
    num_classes: int = 200,
    in_channels: int = 3,
    image_size: ImageSize = 64,
    units: Table | str | None = None,
) -> nn.Module:
    """The paper's VGG-19 with stacked layers, their places **our choice** (``VGG19_UNITS``).

    With 64x64 pixels and 200 classes, counted as the paper counts, 63.65 % of the FLOPs and 55.03 %
    of the parameters are saved; it prints 63.42 % and 54.63 %. Arguments as of ``bunit_vgg16``.
    """
    units = choose_table(units, VGG19_UNITS, tuple(_VGG19))
    return VGG(_VGG19, units, num_classes, in_channels, image_size, 1, nn.Linear)


@register_model()
def vgg19(
    num_classes: int = 200,
    in_channels: int = 3,
    image_size: ImageSize = 64,
    units: Table | str | None = None,
) -> nn.Module:
    """The dense VGG-19 of the paper: stages of 3, 3, 4, 4 and 4 convolutions, otherwise as
    ``vgg16``; 20,322,888 parameters with 200 classes. ``units`` changes nothing."""
    return VGG(_VGG19, {}, num_classes, in_channels, image_size, 1, nn.Linear)


@register_model(dense="vgg16_bn")
def bunit_vgg16_bn(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """The usual VGG-16 with batch norm, most of its 3x3 convolutions stacked layers: **our own**
    network, the paper's is ``bunit_vgg16``.

    With 32x32 pixels and 10 classes 80.15 % of the FLOPs and 72.42 % of the parameters are saved.
    There are no shortcuts: stacked layers begin near the identity
    (:mod:`bunit_kernels.models.initialise`).

    Args:
        image_size: at least 32 on each side, for the five pools.
        form: ``"imagenet"`` for the classifier of three linear layers over 7x7 pixels, ``"cifar"``
            for two linear layers of 512 over one; ``None`` for ``"cifar"`` where neither side of
            the image is above 64.
        units: as of ``bunit_vgg16``; ``VGG16_BN_UNITS`` by default.
    """
    units = choose_table(units, VGG16_BN_UNITS, tuple(_VGG16_BN))
    return _vgg16_bn(units, num_classes, in_channels, form, image_size)


@register_model()
def vgg16_bn(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """The dense VGG-16 with batch norm; ``units`` changes nothing. See ``bunit_vgg16_bn``."""
    return _vgg16_bn({}, num_classes, in_channels, form, image_size)


def _vgg16_bn(
    units: Table, num_classes: int, in_channels: int, form: str | None, image_size: ImageSize
) -> nn.Module:
    large = form_of(form, image_size) == "imagenet"
    pixels, head = (7, _imagenet_head) if large else (1, _cifar_head)
    return VGG(_VGG16_BN, units, num_classes, in_channels, image_size, pixels, head)


class VGG(nn.Module):
    """See ``bunit_vgg16``; keys of ``vgg16_bn``'s ``state_dict`` are torchvision's.

    Shape: [N, in_channels, H, W] -> [N, num_classes], H and W at least 32.

    Args:
        pixels: a side of the image that the classifier sees.
        head: makes the classifier of its inputs and the number of classes.
    """

    def __init__(
        self,
        stages: Stages,
        units: Table,
        num_classes: int,
        in_channels: int,
        image_size: ImageSize,
        pixels: int,
        head: Callable[[int, int], nn.Module],
    ):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        if min(height_and_width(image_size)) < 32:
            raise ValueError(
                f"image_size must be at least 32 for VGG's five pools, got {image_size!r}"
            )
        plan = expand_table(units, {stage: convs for stage, (_, convs) in stages.items()})
        self.units = plan
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, entries in plan.items():
            width = stages[stage][0]
            if entries[0] == NONE:
                raise ValueError(f'units of {stage} begin with "{NONE}", expected a layer first')
            for entry in entries:
                if entry != NONE:
                    layers += _layer(entry, channels, width)
                    channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(pixels)
        self.classifier = head(channels * pixels**2, num_classes)
        initialise(self, linear_std=0.01, near_identity=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _layer(entry: str, in_channels: int, out_channels: int) -> list[nn.Module]:
    if entry not in (NORMAL, "1x1"):
        return [StackedConv2d(fit_units(entry, in_channels, out_channels))]
    k = 1 if entry == "1x1" else 3
    conv = nn.Conv2d(in_channels, out_channels, k, padding=k // 2)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _imagenet_head(features: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, num_classes),
    )  # fmt: skip


def _cifar_head(features: int, num_classes: int) -> nn.Sequential:
    """As the pruning literature has it (14.99 million parameters in all)."""
    return nn.Sequential(
        nn.Linear(features, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True),
        nn.Linear(512, num_classes),
    )  # fmt: skip
