"""Indices that a device gets once: of weights that a norm is folded into, of shuffled channels."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from bunit_kernels import shuffle
from bunit_kernels._device_index import DeviceIndex, to_gpu_once
from bunit_kernels.layout import StackLayout, resolve_units

META = torch.device("meta")  # stands for a device that is not the host


def hybrid_level():
    return StackLayout(resolve_units(("1-2-1", "2-1-2"))).levels[0]


def test_a_device_gets_one_copy():
    index = DeviceIndex((2, 0, 1))
    assert index.on(META) is index.on(META)
    assert index.on(torch.device("cpu")).tolist() == [2, 0, 1]


def test_copies_of_a_layer_take_the_numbers_alone():
    index = DeviceIndex((2, 0, 1))
    index.on(META)
    for other in (copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
        assert other.values == index.values and other._copies == {}


def test_a_copy_made_in_inference_mode_serves_autograd():
    with torch.inference_mode():
        kept = DeviceIndex((1, 0)).on(torch.device("cpu"))
    values = torch.randn(2, requires_grad=True)
    values.index_select(0, kept).sum().backward()
    assert not kept.is_inference()


@pytest.mark.parametrize("what", ["spread", "shuffled", "unshuffled"])
def test_a_second_call_makes_no_tensor_of_numbers(what, monkeypatch):
    """None may be made while a CUDA graph is captured."""
    level, widths, y = hybrid_level(), (1, 3, 2), torch.randn(2, 6, 3, 3)
    calls = {
        "spread": lambda: level.spread(torch.randn(level.out_channels)),
        "shuffled": lambda: shuffle.shuffled(y, widths, 1),
        "unshuffled": lambda: shuffle.unshuffled(y, widths, 1),
    }
    calls[what]()

    def fail(*args, **kwargs):
        raise AssertionError("made a tensor of numbers")

    monkeypatch.setattr(torch, "tensor", fail)
    calls[what]()


def test_a_first_call_in_a_capture_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call the layer once before the capture"):
        to_gpu_once(torch.zeros(1), torch.device("cuda"), "an index")
