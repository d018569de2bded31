"""Residual blocks, dense and stacked; names of the dense ones' parameters are torchvision's."""

from __future__ import annotations

from torch import Tensor, nn

from ..nn import StackedConv2d
from .tables import fit_units


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
    )  # fmt: skip


def _stack(unit: str, in_channels: int, out_channels: int, stride: int) -> StackedConv2d:
    return StackedConv2d(fit_units(unit, in_channels, out_channels), stride=stride)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """A 1x1 convolution and its norm where the block changes its input's shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        _conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
    )  # fmt: skip


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them (He et al., "Deep Residual Learning").

    Shape: [N, in_channels, H, W] -> [N, width, ceil(H / stride), ceil(W / stride)].
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


class StackedBasicBlock(nn.Module):
    """A :class:`BasicBlock` with one stacked layer in place of both convolutions, as in the
    authors' public code: units end in ReLU, the shortcut is added, ReLU again."""

    def __init__(self, in_channels: int, width: int, stride: int, unit: str):
        super().__init__()
        self.conv1 = _stack(unit, in_channels, width, stride)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return self.conv1(x, residual=identity, residual_activation="relu")


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and the shortcut around them; the stride is the 3x3's.

    Shape: [N, in_channels, H, W] -> [N, 4 * width, ceil(H / stride), ceil(W / stride)].
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + identity)


class StackedBottleneck(nn.Module):
    """A :class:`Bottleneck` with a stacked layer in place of its 3x3 convolution and that one's
    norm and ReLU; the 1x1 convolutions around it mix the units."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, unit: str):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _stack(unit, width, width, stride)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.conv2(self.relu(self.bn1(self.conv1(x))))
        return self.relu(self.bn3(self.conv3(x)) + identity)


STACKED = {BasicBlock: StackedBasicBlock, Bottleneck: StackedBottleneck}
