"""EfficientNet-B0 (Tan and Le, "EfficientNet: Rethinking Model Scaling", 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from ..nn import StackedConv2d
from .blocks import ImageSize, check_count, form_of
from .initialise import initialise
from .registry import register_model
from .tables import NORMAL, Table, choose_table, expand_table, fit_units

#: Of each stage: expansion, kernel size, channels, blocks, stride of the first block (table 1).
_STAGES = {
    "stage1": (1, 3, 16, 1, 1),
    "stage2": (6, 3, 24, 2, 2),
    "stage3": (6, 5, 40, 2, 2),
    "stage4": (6, 3, 80, 3, 2),
    "stage5": (6, 5, 112, 3, 1),
    "stage6": (6, 5, 192, 4, 2),
    "stage7": (6, 3, 320, 1, 1),
}

#: Which squeeze-and-excitation modules are stacked, **our choice**: the BUnit paper says that parts
#: of them are replaced. Those of the last two stages, which hold most of their parameters.
EFFICIENTNET_B0_UNITS: Table = {"stage6": "2-1-m", "stage7": "2-1-m"}


@register_model(dense="efficientnet_b0")
def bunit_efficientnet_b0(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """EfficientNet-B0 with stacked layers in some of its squeeze-and-excitation modules.

    In such a module units of 1x1 convolutions with bias, without norm, stand for both of its
    convolutions. This saves 8.83 % of the parameters, as the paper prints (5.32 to 4.85 million).
    The saving of FLOPs that it prints (0.78 to 0.64 G) cannot come from these modules, which cost
    less than half a percent.

    Args:
        image_size: decides the form where ``form`` does not.
        form: ``"imagenet"``, or ``"cifar"``: stride 1 in the first convolution and in stage 2;
            ``None`` for ``"cifar"`` where neither side of the image is above 64.
        units: of which blocks the module is stacked (:mod:`bunit_kernels.models.tables`), or
            ``"r"``; ``EFFICIENTNET_B0_UNITS`` by default.
    """
    units = choose_table(units, EFFICIENTNET_B0_UNITS, tuple(_STAGES))
    return EfficientNet(units, num_classes, in_channels, form_of(form, image_size))


@register_model()
def efficientnet_b0(
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: ImageSize = 224,
    form: str | None = None,
    units: Table | str | None = None,
) -> nn.Module:
    """The dense EfficientNet-B0; ``units`` changes nothing. See ``bunit_efficientnet_b0``."""
    return EfficientNet({}, num_classes, in_channels, form_of(form, image_size))


class EfficientNet(nn.Module):
    """See ``bunit_efficientnet_b0``; keys of its ``state_dict`` are torchvision's where it is
    dense. Without stochastic depth.

    Shape: [N, in_channels, H, W] -> [N, num_classes], any size.
    """

    def __init__(self, units: Table, num_classes: int, in_channels: int, form: str):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        plan = expand_table(units, {stage: entry[3] for stage, entry in _STAGES.items()})
        self.units = plan
        small = form == "cifar"
        stages: list[nn.Module] = [_conv_norm_silu(in_channels, 32, 3, 1 if small else 2)]
        channels = 32
        for stage, entries in plan.items():
            expansion, kernel_size, width, _, first_stride = _STAGES[stage]
            if small and stage == "stage2":
                first_stride = 1
            blocks = []
            for i, entry in enumerate(entries):
                stride = first_stride if i == 0 else 1
                blocks.append(MBConv(channels, width, kernel_size, stride, expansion, entry))
                channels = width
            stages.append(nn.Sequential(*blocks))
        stages.append(_conv_norm_silu(channels, 1280, 1))
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class MBConv(nn.Module):
    """1x1 convolution to ``expansion`` times the channels, depthwise convolution, squeeze and
    excitation, 1x1 convolution without activation, and the residual where the shape stays.

    Args:
        entry: ``"normal"``, or the unit of a stacked squeeze-and-excitation module.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        expansion: int,
        entry: str,
    ):
        super().__init__()
        hidden = in_channels * expansion
        expand = [_conv_norm_silu(in_channels, hidden, 1)] if expansion != 1 else []
        if entry == NORMAL:
            excite = SqueezeExcitation(hidden, in_channels // 4)
        else:
            excite = StackedSqueezeExcitation(hidden, entry)
        self.block = nn.Sequential(
            *expand,
            _conv_norm_silu(hidden, hidden, kernel_size, stride, groups=hidden),
            excite,
            _conv_norm(hidden, out_channels, 1),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.adds else self.block(x)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a sigmoid of what two 1x1 convolutions make of all channels' means (Hu
    et al., "Squeeze-and-Excitation Networks", 2018). The shape stays."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * self.fc2(nn.functional.silu(self.fc1(mean))).sigmoid()


class StackedSqueezeExcitation(nn.Module):
    """A :class:`SqueezeExcitation` whose convolutions are a stacked layer: each unit sees its own
    channels' means alone."""

    def __init__(self, channels: int, unit: str):
        super().__init__()
        self.stack = StackedConv2d(
            fit_units(unit, channels, channels),
            kernel_size=1,
            norm=None,
            activation="silu",
            out_activation="identity",
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.stack(x.mean((2, 3), keepdim=True)).sigmoid()


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def _conv_norm_silu(*args: int, groups: int = 1) -> nn.Sequential:
    """``_conv_norm`` of these arguments, then SiLU."""
    return nn.Sequential(*_conv_norm(*args, groups=groups), nn.SiLU(inplace=True))
