"""ResNet-10, 18, 34, 50, 101, and the ResNet-20, 32, 56, 110 for small images.

He et al., "Deep Residual Learning for Image Recognition" (2016). Which residual blocks of the
bunit networks are stacked layers is said by the tables below; ``units=`` takes another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from .blocks import ImageSize, check_count, form_of
from .initialise import initialise
from .registry import Factory, register_model
from .resnet_blocks import STACKED, BasicBlock, Bottleneck
from .tables import NORMAL, Table, expand_table

#: Two-convolution blocks, as in the authors' public code: stages 2 and 3 stacked, 1 and 4 normal.
BASIC_UNITS: Table = {"layer2": "2-4-m", "layer3": "2-4-m"}

#: Bottlenecks, **our choice** (the paper prints no table of units by layer): every 3x3 convolution,
#: which saves what the paper reports of ResNet-50 within a point.
BOTTLENECK_UNITS: Table = {
    "layer1": "2-4-m", "layer2": "2-4-m", "layer3": "2-4-m", "layer4": "2-4-m",
}  # fmt: skip

#: Networks for small images, **our choice**: a normal block opens every stage and mixes what at
#: most three stacked ones gave. None is the paper's "ResNet-20", which has 8.52 M parameters.
SMALL_UNITS: Table = {
    "layer1": (NORMAL, "2-4-m", "2-4-m", "2-4-m"),
    "layer2": (NORMAL, "2-4-m", "2-4-m", "2-4-m"),
    "layer3": (NORMAL, "2-4-m"),
}


class ResNet(nn.Module):
    """A residual network; keys of its ``state_dict`` are torchvision's wherever it is dense.

    Shape: [N, in_channels, H, W] -> [N, num_classes], any size.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        depths, widths: blocks of each stage, and their width.
        units: which blocks are stacked layers (:mod:`bunit_kernels.models.tables`); stages are
            ``layer1``, ``layer2``, ...
        form: ``"imagenet"`` for a 7x7 convolution of stride 2 and a max pool before the first
            stage, ``"cifar"`` for a 3x3 convolution of stride 1 alone.

    Raises:
        ValueError, TypeError: see ``expand_table`` and ``fit_units``.
    """

    def __init__(
        self,
        block: type[nn.Module],
        depths: Sequence[int],
        widths: Sequence[int],
        units: Table,
        num_classes: int,
        in_channels: int,
        form: str,
    ):
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        stages = {f"layer{i}": depth for i, depth in enumerate(depths, 1)}
        plan = expand_table(units, stages)
        if form == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        else:
            self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        channels = [widths[0], *(width * block.expansion for width in widths)]
        for (name, entries), width, (before, after) in zip(
            plan.items(), widths, pairwise(channels), strict=True
        ):
            blocks = []
            for i, entry in enumerate(entries):
                stride = 2 if i == 0 and name != "layer1" else 1
                shape = (before if i == 0 else after, width, stride)
                blocks.append(block(*shape) if entry == NORMAL else STACKED[block](*shape, entry))
            self.add_module(name, nn.Sequential(*blocks))
        self.stages = tuple(plan)
        self.units = plan
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[-1], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(self.avgpool(x).flatten(1))


def _pair(name: str, block: type[nn.Module], depths: Sequence[int], table: Table, note: str = ""):
    """The bunit network and its dense counterpart, registered."""
    widths = (64, 128, 256, 512)

    def bunit(
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        form: str | None = None,
        units: Table | None = None,
    ) -> nn.Module:
        form = form_of(form, image_size)
        units = table if units is None else units
        return ResNet(block, depths, widths, units, num_classes, in_channels, form)

    def dense(
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        form: str | None = None,
        units: Table | None = None,
    ) -> nn.Module:
        form = form_of(form, image_size)
        return ResNet(block, depths, widths, {}, num_classes, in_channels, form)

    return _register(name, bunit, dense, table, note, _FORM)


def _small_pair(name: str, blocks: int, note: str = ""):
    """As ``_pair``, for the three-stage networks of ``6 * blocks + 2`` layers."""
    depths, widths = (blocks,) * 3, (16, 32, 64)

    def bunit(
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: ImageSize = 32,
        units: Table | None = None,
    ) -> nn.Module:
        units = SMALL_UNITS if units is None else units
        return ResNet(BasicBlock, depths, widths, units, num_classes, in_channels, "cifar")

    def dense(
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: ImageSize = 32,
        units: Table | None = None,
    ) -> nn.Module:
        return ResNet(BasicBlock, depths, widths, {}, num_classes, in_channels, "cifar")

    return _register(name, bunit, dense, SMALL_UNITS, note, _ANY_SIZE)


_FORM = """image_size: decides the form where ``form`` does not.
        form: ``"imagenet"`` or ``"cifar"`` (3x3 convolution of stride 1, no max pool); ``None`` for
            ``"cifar"`` where neither side is above 64."""
_ANY_SIZE = "image_size: any works, so that it changes nothing."


def _register(
    name: str, bunit: Factory, dense: Factory, table: Table, note: str, size: str
) -> tuple[Factory, Factory]:
    where = "\n".join(f"        {stage}: {entry}" for stage, entry in table.items())
    bunit.__name__ = bunit.__qualname__ = f"bunit_{name}"
    bunit.__doc__ = f"""``{name}`` with stacked layers for some of its residual blocks.{note}

    By default these stages are stacked (:mod:`bunit_kernels.models.tables`)::

{where}

    Args:
        {size}
        units: another such table.
    """
    dense.__name__ = dense.__qualname__ = name
    dense.__doc__ = f"""The dense ``{name}``.

    Args:
        {size}
        units: changes nothing; there so that both networks take the same arguments.
    """
    return register_model(dense=name)(bunit), register_model()(dense)


_AUTHORS = " The form of the authors' public code."
_REPORTED = (
    "\n\n    With 224x224 pixels and 1000 classes 42.80 % of the FLOPs and 43.16 % of the"
    "\n    parameters are saved; the paper reports 43.80 % and 43.67 %, without the table of units."
)

bunit_resnet10, resnet10 = _pair("resnet10", BasicBlock, (1, 1, 1, 1), BASIC_UNITS, _AUTHORS)
bunit_resnet18, resnet18 = _pair("resnet18", BasicBlock, (2, 2, 2, 2), BASIC_UNITS, _AUTHORS)
bunit_resnet34, resnet34 = _pair("resnet34", BasicBlock, (3, 4, 6, 3), BASIC_UNITS, _AUTHORS)
bunit_resnet50, resnet50 = _pair("resnet50", Bottleneck, (3, 4, 6, 3), BOTTLENECK_UNITS, _REPORTED)
bunit_resnet101, resnet101 = _pair("resnet101", Bottleneck, (3, 4, 23, 3), BOTTLENECK_UNITS)

bunit_resnet20, resnet20 = _small_pair("resnet20", 3)
bunit_resnet32, resnet32 = _small_pair("resnet32", 5)
bunit_resnet56, resnet56 = _small_pair("resnet56", 9)
bunit_resnet110, resnet110 = _small_pair("resnet110", 18)
