"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, form_of
from .initialise import initialise
from .registry import register_model
from .tables import NORMAL, Table, expand_table, fit_units

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

#: Which inverted residuals are stacked layers, **our choice**, there is no published one: every
#: second block of a stage, so that each follows a normal block and leaves the width as it is.
MOBILENET_V2_UNITS: Table = {
    "stage2": (NORMAL, "2-4-m"),
    "stage3": (NORMAL, "2-4-m"),
    "stage4": (NORMAL, "2-4-m"),
    "stage5": (NORMAL, "2-4-m"),
    "stage6": (NORMAL, "2-4-m"),
}


@register_model(dense="mobilenet_v2")
def bunit_mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | None = None,
) -> nn.Module:
    """MobileNetV2 with stacked layers for some of its inverted residuals.

    A stacked layer takes the place of a whole block: units of 3x3 convolutions with ReLU6 between,
    linear at the end, and the residual added.

    Args:
        image_size: decides the form where ``form`` does not.
        form: ``"imagenet"``, or ``"cifar"``: stride 1 in the first convolution and in stage 2;
            ``None`` for ``"cifar"`` where neither side of the image is above 64.
        units: which blocks are stacked (:mod:`bunit_kernels.models.tables`);
            ``MOBILENET_V2_UNITS`` by default.
    """
    units = MOBILENET_V2_UNITS if units is None else units
    return MobileNetV2(units, num_classes, in_channels, form_of(form, image_size))


@register_model()
def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | None = None,
) -> nn.Module:
    """The dense MobileNetV2; ``units`` changes nothing. See ``bunit_mobilenet_v2``."""
    return MobileNetV2({}, num_classes, in_channels, form_of(form, image_size))


class MobileNetV2(nn.Module):
    """See ``bunit_mobilenet_v2``; keys of its ``state_dict`` are torchvision's where it is dense.

    Shape: [N, in_channels, H, W] -> [N, num_classes], any size.
    """

    def __init__(self, units: Table, num_classes: int, in_channels: int, form: str):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        plan = expand_table(units, {stage: n for stage, (_, _, n, _) in _STAGES.items()})
        self.units = plan
        small = form == "cifar"
        blocks: list[nn.Module] = [_conv_norm_relu6(in_channels, 32, 3, stride=1 if small else 2)]
        channels = 32
        for stage, entries in plan.items():
            expansion, width, _, first_stride = _STAGES[stage]
            if small and stage == "stage2":
                first_stride = 1
            for i, entry in enumerate(entries):
                stride = first_stride if i == 0 else 1
                if entry == NORMAL:
                    blocks.append(InvertedResidual(channels, width, stride, expansion))
                else:
                    blocks.append(StackedInvertedResidual(channels, width, stride, entry))
                channels = width
        blocks.append(_conv_norm_relu6(channels, 1280, 1))
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class InvertedResidual(nn.Module):
    """1x1 convolution to ``expansion`` times the channels, depthwise 3x3, 1x1 without activation,
    and the residual where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        expand = [_conv_norm_relu6(in_channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
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
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))
