"""Results of pruning methods as their authors give them, each with where it was read."""

from __future__ import annotations

from .result import CIFAR10, IMAGENET, RESNET50, RESNET56, RESNET110, VGG16, Result, Source


def _readme(text: str, repository: str, commit: str) -> Source:
    return Source(
        f"{text}; README of the authors' {repository} at {commit[:7]}",
        f"https://github.com/{repository}/blob/{commit}/README.md",
    )


_L1 = Source(
    "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, table 1 (100 - error)",
    "https://arxiv.org/abs/1608.08710",
)
_HRANK = _readme(
    "Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, with the baselines "
    "that the README of lmbxmu/HRankPlus gives for the same networks",
    "lmbxmu/HRank",
    "c03ac851ec93413a6937a477490217e3ba4f8156",
)
_HRANK_PLUS = _readme(
    "Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, extended version",
    "lmbxmu/HRankPlus",
    "bcdb51dd7f039d8fa295eeafa7bc78bc7dab3d75",
)
_ABC = _readme(
    "Lin et al., Channel Pruning via Automatic Structure Search, IJCAI 2020",
    "lmbxmu/ABCPruner",
    "32335933f5bfb073b3b4132f2a628210ddefc7db",
)
_SKETCH = _readme(
    "Lin et al., Filter Sketch for Network Pruning, arXiv:2001.08514, 2020",
    "lmbxmu/FilterSketch",
    "daeca0941e151a96b3733a9a4ab1fdedccfa851c",
)
_CHIP = _readme(
    "Sui et al., CHIP: CHannel Independence-based Pruning for Compact Neural Networks, NeurIPS "
    "2021, partly trained longer than in the paper",
    "Eclipsess/CHIP_NeurIPS2021",
    "418041b7805b88efb5c7cdd08b0b8050dc965335",
)
_WHITE_BOX = _readme(
    "Zhang et al., Carrying out CNN Channel Pruning in a White Box, IEEE TNNLS 2022",
    "zyxxmu/White-Box",
    "6bd750f4f1081da4e89c0bcabeff60604341e060",
)

# fmt: off
PRUNING = (
    Result("PFEC", 2017, CIFAR10, VGG16, 93.40, 93.25, 34.2, 64.0, _L1),
    Result("HRank", 2020, CIFAR10, VGG16, 92.34, 93.96, 65.3, 82.1, _HRANK),
    Result("HRank, extended", 2020, CIFAR10, VGG16, 93.73, 93.96, 58.1, 81.6, _HRANK_PLUS),
    Result("HRank, extended", 2020, CIFAR10, VGG16, 93.10, 93.96, 78.6, 87.3, _HRANK_PLUS),
    Result("ABCPruner", 2020, CIFAR10, VGG16, 93.08, None, 73.68, 88.68, _ABC),
    Result("CHIP", 2021, CIFAR10, VGG16, 93.86, 93.96, 58.1, 81.6, _CHIP),
    Result("CHIP", 2021, CIFAR10, VGG16, 93.18, 93.96, 78.6, 87.3, _CHIP),
    Result("White-Box", 2022, CIFAR10, VGG16, 93.47, None, 76.4, None, _WHITE_BOX),

    Result("PFEC", 2017, CIFAR10, RESNET56, 93.06, 93.04, 27.6, 13.7, _L1),
    Result("HRank", 2020, CIFAR10, RESNET56, 93.17, 93.26, 50.0, 42.4, _HRANK),
    Result("HRank, extended", 2020, CIFAR10, RESNET56, 93.57, 93.26, 47.4, 42.8, _HRANK_PLUS),
    Result("ABCPruner", 2020, CIFAR10, RESNET56, 93.23, None, 54.13, 54.20, _ABC),
    Result("FilterSketch", 2020, CIFAR10, RESNET56, 93.19, None, 41.5, 41.2, _SKETCH),
    Result("CHIP", 2021, CIFAR10, RESNET56, 94.16, 93.26, 47.4, 42.8, _CHIP),
    Result("White-Box", 2022, CIFAR10, RESNET56, 93.54, None, 55.6, None, _WHITE_BOX),

    Result("PFEC", 2017, CIFAR10, RESNET110, 93.30, 93.53, 38.6, 32.4, _L1),
    Result("HRank", 2020, CIFAR10, RESNET110, 94.23, 93.50, 37.9, 38.7, _HRANK),
    Result("HRank, extended", 2020, CIFAR10, RESNET110, 94.20, 93.50, 44.4, 39.1, _HRANK_PLUS),
    Result("HRank, extended", 2020, CIFAR10, RESNET110, 93.81, 93.50, 59.6, 58.1, _HRANK_PLUS),
    Result("ABCPruner", 2020, CIFAR10, RESNET110, 93.58, None, 65.04, 67.41, _ABC),
    Result("FilterSketch", 2020, CIFAR10, RESNET110, 93.44, None, 63.3, 59.9, _SKETCH),
    Result("CHIP", 2021, CIFAR10, RESNET110, 94.44, 93.50, 52.1, 48.3, _CHIP),
    Result("White-Box", 2022, CIFAR10, RESNET110, 94.12, None, 66.0, None, _WHITE_BOX),

    Result("HRank, extended", 2020, IMAGENET, RESNET50, 75.56, 76.15, 44.8, 40.8, _HRANK_PLUS),
    Result("HRank, extended", 2020, IMAGENET, RESNET50, 74.19, 76.15, 62.8, 56.7, _HRANK_PLUS),
    Result("ABCPruner", 2020, IMAGENET, RESNET50, 73.516, None, 56.61, 56.01, _ABC),
    Result("ABCPruner", 2020, IMAGENET, RESNET50, 74.843, None, 38.21, 29.5, _ABC),
    Result("FilterSketch", 2020, IMAGENET, RESNET50, 74.68, None, 45.5, 43.0, _SKETCH),
    Result("FilterSketch", 2020, IMAGENET, RESNET50, 73.04, None, 63.1, 59.2, _SKETCH),
    Result("CHIP", 2021, IMAGENET, RESNET50, 76.41, 76.15, 44.8, 40.8, _CHIP),
    Result("CHIP", 2021, IMAGENET, RESNET50, 75.26, 76.15, 62.8, 56.7, _CHIP),
    Result("White-Box", 2022, IMAGENET, RESNET50, 75.32, None, 45.6, None, _WHITE_BOX),
    Result("White-Box", 2022, IMAGENET, RESNET50, 74.21, None, 63.5, None, _WHITE_BOX),
)
# fmt: on
