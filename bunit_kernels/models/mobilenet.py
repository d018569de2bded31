"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, form_of
from .initialise import initialise
from .registry import register_model
from .tables import NORMAL, Table, choose_table, expand_table, fit_units

#: Of each stage: expansion, channels, blocks, stride of the first block (table 2 of the paper).
_STAGES = {
    "stage1": (1, 16, 1, 1),
    "stage2": (6, 24, 2, 2),
    "stage3": (6, 32, 3, 2),
    "stage4": (6, 64, 4, 2),
    "stage5": (6, 96, 3, 1),
    "stage6": (6, 160, 3, 2),
    "stage7": (6, 320, 1, 1),
}

_FORMS = ("imagenet", "cifar", "paper")

#: Strides of stages by form, where they are other ones.
_STRIDES = {"imagenet": {}, "cifar": {"stage2": 1}, "paper": {"stage6": 1}}

#: Which inverted residuals are stacked layers, **our choice**: the paper has no table. Every second
#: block of a stage, so that each follows a normal block and leaves the width as it is.
MOBILENET_V2_UNITS: Table = {
    "stage2": (NORMAL, "2-4-m"),
    "stage3": (NORMAL, "2-4-m"),
    "stage4": (NORMAL, "2-4-m"),
    "stage5": (NORMAL, "2-4-m"),
    "stage6": (NORMAL, "2-4-m"),
}

#: Tables for the paper's form, **our choice**: they save about what it prints for CIFAR-10 (38.56 %
#: of the FLOPs, 36.81 % of the parameters) and for CIFAR-100 (62.61 % and 60.48 %).
MOBILENET_V2_CIFAR10_UNITS: Table = {
    "stage2": "2-4-m",
    "stage3": (NORMAL, "2-4-m"),
    "stage4": (NORMAL, NORMAL, "2-4-m"),
    "stage6": (NORMAL, "2-4-m"),
    "stage7": "2-4-m",
}
MOBILENET_V2_CIFAR100_UNITS: Table = {
    "stage2": "2-4-m",
    "stage3": (NORMAL, "2-4-m", "2-4-m"),
    "stage4": (NORMAL, "2-4-m"),
    "stage5": (NORMAL, "2-4-m", "2-4-m"),
    "stage6": (NORMAL, "2-4-m", "2-4-m"),
    "stage7": "2-4-m",
}


@register_model(dense="mobilenet_v2")
def bunit_mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """MobileNetV2 with stacked layers for some of its inverted residuals.

    A stacked layer takes the place of a whole block: units of 3x3 convolutions with ReLU6 between,
    linear at the end, and the residual added.

    Args:
        image_size: decides the form where ``form`` does not.
        form: ``"imagenet"``, or ``"cifar"``: stride 1 in the first convolution and in stage 2;
            ``None`` for ``"cifar"`` where neither side of the image is above 64. ``"paper"`` is
            the dense network of the paper's tables, found by its printed sizes (2.25 and 2.37
            million parameters, 134.95 and 135.19 MFLOPs): the first convolution 1x1 of stride 1
            and padded by 1, stage 6 of stride 1, stage 1 with an expanding convolution too, a bias
            in every convolution.
        units: which blocks are stacked (:mod:`bunit_kernels.models.tables`), or ``"r"``; by
            default ``MOBILENET_V2_CIFAR10_UNITS`` in the paper's form, else ``MOBILENET_V2_UNITS``.
    """
    form = form_of(form, image_size, _FORMS)
    default = MOBILENET_V2_CIFAR10_UNITS if form == "paper" else MOBILENET_V2_UNITS
    units = choose_table(units, default, tuple(_STAGES))
    return MobileNetV2(units, num_classes, in_channels, form)


@register_model()
def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """The dense MobileNetV2; ``units`` changes nothing. See ``bunit_mobilenet_v2``."""
    return MobileNetV2({}, num_classes, in_channels, form_of(form, image_size, _FORMS))


class MobileNetV2(nn.Module):
    """See ``bunit_mobilenet_v2``; keys of its ``state_dict`` are torchvision's where it is dense,
    but in the paper's form.

    Shape: [N, in_channels, H, W] -> [N, num_classes], any size.
    """

    def __init__(self, units: Table, num_classes: int, in_channels: int, form: str):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        plan = expand_table(units, {stage: n for stage, (_, _, n, _) in _STAGES.items()})
        self.units = plan
        paper = form == "paper"
        if paper:
            stem = _conv_norm_relu6(in_channels, 32, 1, padding=1, bias=True)
        else:
            stem = _conv_norm_relu6(in_channels, 32, 3, stride=1 if form == "cifar" else 2)
        blocks: list[nn.Module] = [stem]
        channels = 32
        for stage, entries in plan.items():
            expansion, width, _, first_stride = _STAGES[stage]
            first_stride = _STRIDES[form].get(stage, first_stride)
            for i, entry in enumerate(entries):
                stride = first_stride if i == 0 else 1
                if entry == NORMAL:
                    blocks.append(
                        InvertedResidual(channels, width, stride, expansion, bias=paper, full=paper)
                    )
                else:
                    blocks.append(StackedInvertedResidual(channels, width, stride, entry))
                channels = width
        blocks.append(_conv_norm_relu6(channels, 1280, 1, bias=paper))
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class InvertedResidual(nn.Module):
    """1x1 convolution to ``expansion`` times the channels, depthwise 3x3, 1x1 without activation,
    and the residual where the shape stays.

    Args:
        full: whether the first convolution stands where ``expansion`` is 1 too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        expansion: int,
        bias: bool = False,
        full: bool = False,
    ):
        super().__init__()
        hidden = in_channels * expansion
        expands = full or expansion != 1
        expand = [_conv_norm_relu6(in_channels, hidden, 1, bias=bias)] if expands else []
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden, bias=bias),
            nn.Conv2d(hidden, out_channels, 1, bias=bias),
            nn.BatchNorm2d(out_channels),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class StackedInvertedResidual(nn.Module):
    """A stacked layer in place of an :class:`InvertedResidual`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, unit: str):
        super().__init__()
        self.conv = StackedConv2d(
            fit_units(unit, in_channels, out_channels),
            stride=stride,
            activation="relu6",
            out_activation="identity",
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, residual=x if self.adds else None)


def _conv_norm_relu6(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
    bias: bool = False,
) -> nn.Sequential:
    padding = kernel_size // 2 if padding is None else padding
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))
