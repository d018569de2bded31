"""ShuffleNetV2 of width 1.0 (Ma et al., "Practical Guidelines for Efficient CNN Architecture
Design", 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, form_of
from .initialise import initialise
from .registry import register_model
from .tables import NORMAL, Table, choose_table, expand_table, fit_units

#: Of each stage: channels and blocks; the first block has stride 2 (table 5 of the paper).
_STAGES = {"stage2": (116, 4), "stage3": (232, 8), "stage4": (464, 4)}

#: Which blocks have a stacked layer, **our choice**: the BUnit paper has no table, and prints two
#: compact networks for CIFAR-100, of 85.27 and 78.40 MFLOPs against 91.30, and 1.25 and 1.07
#: million parameters against 1.36. These save about as much as each.
SHUFFLENET_V2_LARGER_UNITS: Table = {
    "stage3": (NORMAL,) * 7 + ("2-4-m",),
    "stage4": (NORMAL,) * 3 + ("2-4-m",),
}
SHUFFLENET_V2_UNITS: Table = {
    "stage3": (NORMAL,) * 7 + ("2-4-m",),
    "stage4": (NORMAL, "2-4-m", "2-4-m", "2-4-m"),
}


@register_model(dense="shufflenet_v2")
def bunit_shufflenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """ShuffleNetV2 with stacked layers for some of its blocks' second branches.

    A stacked layer takes the place of a branch's three convolutions; the shuffle of channels behind
    each block mixes its units with the other branch.

    Args:
        image_size: decides the form where ``form`` does not.
        form: ``"imagenet"``, or ``"cifar"``: stride 1 in the first convolution and no max pool;
            ``None`` for ``"cifar"`` where neither side of the image is above 64.
        units: which blocks are stacked (:mod:`bunit_kernels.models.tables`), or ``"r"``;
            ``SHUFFLENET_V2_UNITS`` by default, ``SHUFFLENET_V2_LARGER_UNITS`` saves less.
    """
    units = choose_table(units, SHUFFLENET_V2_UNITS, tuple(_STAGES))
    return ShuffleNetV2(units, num_classes, in_channels, form_of(form, image_size))


@register_model()
def shufflenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """The dense ShuffleNetV2; ``units`` changes nothing. See ``bunit_shufflenet_v2``."""
    return ShuffleNetV2({}, num_classes, in_channels, form_of(form, image_size))


class ShuffleNetV2(nn.Module):
    """See ``bunit_shufflenet_v2``; keys of its ``state_dict`` are those of torchvision's
    ``shufflenet_v2_x1_0`` where it is dense.

    Shape: [N, in_channels, H, W] -> [N, num_classes], any size.
    """

    def __init__(self, units: Table, num_classes: int, in_channels: int, form: str):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        plan = expand_table(units, {stage: n for stage, (_, n) in _STAGES.items()})
        self.units = plan
        small = form == "cifar"
        channels = 24
        self.conv1 = _conv_norm_relu(in_channels, channels, 3, 1 if small else 2)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        for stage, entries in plan.items():
            width = _STAGES[stage][0]
            blocks = []
            for i, entry in enumerate(entries):
                blocks.append(ShuffleBlock(channels, width, 2 if i == 0 else 1, entry))
                channels = width
            self.add_module(stage, nn.Sequential(*blocks))
        self.conv5 = _conv_norm_relu(channels, 1024, 1)
        self.fc = nn.Linear(1024, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        for stage in _STAGES:
            x = getattr(self, stage)(x)
        return self.fc(self.conv5(x).mean((2, 3)))


class ShuffleBlock(nn.Module):
    """Two branches side by side, whose channels are then interleaved. With stride 1 the first
    branch is the first half of the input as it is and the second works on the other half; with
    stride 2 both see all of it.

    Shape: [N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Args:
        entry: ``"normal"``, or the unit of a stacked layer in place of the second branch.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, entry: str):
        super().__init__()
        self.splits = stride == 1
        half = out_channels // 2
        before = half if self.splits else in_channels
        self.branch1 = nn.Sequential()
        if not self.splits:
            self.branch1 = nn.Sequential(
                *_depthwise(in_channels, stride), *_conv_norm_relu(in_channels, half, 1)
            )
        if entry == NORMAL:
            self.branch2 = nn.Sequential(
                *_conv_norm_relu(before, half, 1),
                *_depthwise(half, stride),
                *_conv_norm_relu(half, half, 1),
            )
        else:
            self.branch2 = StackedConv2d(fit_units(entry, before, half), stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1) if self.splits else (x, x)
        y = torch.stack((self.branch1(first), self.branch2(second)), dim=2)
        return y.flatten(1, 2)  # channels of the branches by turns


def _depthwise(channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return conv, nn.BatchNorm2d(channels)


def _conv_norm_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
