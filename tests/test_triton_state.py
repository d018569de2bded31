"""What Triton's kernels read of PyTorch's state: TF32 switches and the capture of graphs."""

from __future__ import annotations

import types

import pytest
import torch

from bunit_kernels.ops._shapes import empty_like_format

pytest.importorskip("triton")
from bunit_kernels.triton_kernels import conv2d, conv_grad_weight, conv_level, linear, tf32, work


@pytest.mark.parametrize(("value", "allowed"), [("tf32", True), ("ieee", False)])
def test_tf32_follows_cudnns_convolutions(value, allowed):
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = value
        assert tf32.convolutions_allow_tf32() is allowed
    finally:
        conv.fp32_precision = before


@pytest.mark.parametrize("allowed", [True, False])
def test_the_older_switch_where_there_is_no_other(allowed):
    assert tf32._allows(None, types.SimpleNamespace(allow_tf32=allowed)) is allowed


@pytest.mark.parametrize("convolutions", [True, False])
def test_levels_follow_the_switch_of_their_kind(convolutions, monkeypatch):
    """Linear levels run on the convolutions' kernels, but obey what products of matrices do."""
    seen = []

    def note(*args, tf32, **options):
        seen.append(tf32)

    conv = torch.backends.cudnn.conv if hasattr(torch.backends.cudnn, "conv") else None
    monkeypatch.setattr(tf32, "_allows", lambda setting, _: (setting is conv) is convolutions)
    monkeypatch.setattr(conv_level, "launch", note)
    monkeypatch.setattr(conv_grad_weight, "launch", note)
    x, weight, units = torch.zeros(3, 128), torch.zeros(128, 128), [1, 128, 128]
    linear.level(x, weight, None, units, "relu")
    linear.grad_input(x, weight, units)
    linear.grad_weight(x, x, weight.shape, units)
    assert seen == [not convolutions] * 3
    seen.clear()
    image, weight, units = torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3), [1, 3, 1, 16, 16]
    conv2d.level(image, weight, None, units, 1, 1, "relu")
    conv2d.grad_input(image, weight, image.shape, units, 1, 1)
    conv2d.grad_weight(image, image, weight.shape, units, 1, 1)
    assert seen == [convolutions] * 3


def test_a_first_call_in_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call the layer once before the capture"):
        work._on_device(torch.zeros(1), torch.device("cuda"))


def test_work_lists_are_kept():
    first = work.conv_work([1, 3, 1, 2, 2], torch.device("cpu")).table
    for count in range(2, 700):
        work.conv_work([count, 1, 0, 1, 1], torch.device("cpu"))
    assert work.conv_work([1, 3, 1, 2, 2], torch.device("cpu")).table is first


def test_outputs_are_made_in_their_format():
    x = torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    y = empty_like_format(x, (2, 6, 4, 5))
    assert y.is_contiguous(memory_format=torch.channels_last) and y._base is None
