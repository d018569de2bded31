"""The network that searches are tested on: small, and beside the package's own."""

from __future__ import annotations

import pytest

from bunit_kernels.models import registry
from bunit_kernels.models.resnet import BasicBlock, ResNet


def bunit_tiny(num_classes=2, in_channels=1, image_size=6, units=None):
    units = {} if units is None else units
    return ResNet(BasicBlock, (2, 3), (8, 16), units, num_classes, in_channels, "cifar")


def tiny(num_classes=2, in_channels=1, image_size=6, units=None):
    return bunit_tiny(num_classes, in_channels, image_size)


@pytest.fixture(autouse=True, scope="module")
def tiny_model():
    """A residual network of five blocks goes by its name, while the tests of a file run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._MODELS, "bunit_tiny", bunit_tiny)
        patch.setitem(registry._MODELS, "tiny", tiny)
        patch.setitem(registry._DENSE, "bunit_tiny", "tiny")
        yield
