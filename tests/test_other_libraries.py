"""timm's and torchvision's networks; runs where these are installed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from bunit_kernels import StackedConv2d, bunitize, fuse, metrics, models


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def assert_counted_and_fused(model: nn.Module, saved: float) -> None:
    """``saved``: share of the FLOPs at 64x64, from counts of the shapes."""
    dense = metrics.count_flops(model, (3, 64, 64))
    new, report = bunitize(model, input_size=(3, 64, 64))
    assert report.new_flops == metrics.count_flops(new, (3, 64, 64))
    assert report.new_parameters == metrics.count_parameters(new)
    assert report.flops == dense and report.flops_saving == pytest.approx(saved, abs=0.005)
    x = torch.randn(2, 3, 64, 64)
    new(x)  # in training mode: norms with statistics
    fused = fuse(new.eval())
    assert norms(fused) == 0 < norms(new)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), new(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, saved", [("resnet18", 0.866), ("resnet50", 0.428)])
def test_torchvision(name, saved):
    torchvision = pytest.importorskip("torchvision")
    assert_counted_and_fused(torchvision.models.get_model(name, num_classes=10), saved)


@pytest.mark.parametrize("name, saved", [("resnet18", 0.866), ("dla34", 0.815)])
def test_timm(name, saved):
    timm = pytest.importorskip("timm")
    assert_counted_and_fused(timm.create_model(name, num_classes=10), saved)


def test_ours_by_timms_names():
    timm = pytest.importorskip("timm")
    import bunit_kernels.timm_models  # noqa: F401

    ours = [name for name in models.list_models() if models.dense_counterpart(name)]
    assert set(ours) <= set(timm.list_models("bunit_*"))
    assert all(timm.is_model(name) for name in ours)
    model = timm.create_model("bunit_resnet18", num_classes=7, in_chans=1, img_size=32)
    same = models.create_model("bunit_resnet18", num_classes=7, in_channels=1, image_size=32)
    assert str(model) == str(same) and model.num_classes == 7
    assert any(isinstance(m, StackedConv2d) for m in model.modules())
    assert timm.create_model("bunit_resnet50").num_classes == 1000
    with pytest.raises(ValueError, match="bunit_resnet50 has no pretrained weights"):
        timm.create_model("bunit_resnet50", pretrained=True)
    with pytest.raises(TypeError, match="unknown argument 'depth'"):
        timm.create_model("bunit_resnet50", depth=3)


def test_the_package_imports_neither():
    code = "import sys, bunit_kernels; assert not {'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
