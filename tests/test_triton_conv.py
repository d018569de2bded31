"""Convolutional levels of the ``triton`` backend under Triton's interpreter."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from reference_cases import LEVEL_CONVS, ConvCase, quick, random_conv, smooth, some
from reference_checks import check_against_reference
from reference_runs import conv2d, converted, draw

from bunit_kernels import StackedConv2d, backend, backends

if reason := backends.why_not("triton", "cpu"):
    pytest.skip(reason, allow_module_level=True)

from bunit_kernels.triton_kernels import conv_grad_weight, conv_level, tuning, work


@pytest.fixture(autouse=True)
def triton():
    with backend("triton"):
        yield


WIDE = tuple(
    ConvCase(units, 2, size=(2, 5, 6), layout=layout, grad_layout=layout, **more)
    for units in ("16-16", "24-20", "17-40", "16-72")
    for layout in ("contiguous", "channels_last")
    for more in ({}, {"stride": 2}, {"dilation": 2, "kernel_size": 1})
)
CASES = (*some(quick(LEVEL_CONVS), 8), *some(WIDE, 12))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients(case, seed):
    check_against_reference(conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", some(CASES, 4), ids=str)
def test_at_low_precision(case, dtype, seed):
    check_against_reference(conv2d, smooth(case), dtype, seed)


def random_cases(count):
    numbers = random.Random(5)
    return quick(replace(random_conv(numbers, depth=1), residual=None) for _ in range(3 * count))[
        :count
    ]


@pytest.mark.parametrize("case", random_cases(3), ids=str)
def test_random_cases(case, seed):
    check_against_reference(conv2d, case, torch.float32, seed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("units", [("2-3", "1-2"), ("16-16", "16-16"), ("20-3", "1-30")])
def test_nan_and_infinity_stay_in_their_unit(units, value):
    layer = StackedConv2d(units, norm=None, out_activation="identity")
    x = torch.randn(2, layer.in_channels, 5, 6)
    x[1, 0, 2, 3] = value
    with torch.no_grad():
        y = layer(x)
        with backend("reference"):
            expected = layer(x)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert not y.isfinite().all() and y[:, layer.units[0].widths[-1] :].isfinite().all()


@pytest.mark.parametrize(
    ("size", "width"), [((1 << 11, 2, 1 << 10, 1 << 10), 2), ((1, 8, 30000, 30000), 4)]
)
def test_more_than_32_bits_count_is_refused(size, width):
    """Before any kernel runs, with what was given; many more channels are no trouble."""
    with pytest.raises(ValueError, match="2\\^31 pixels.*got a tensor of shape"):
        conv_level.check_size(torch.empty(size, device="meta"), width)
    conv_level.check_size(torch.empty((1, 4096, 30000, 30000), device="meta"), 2)


def test_every_configuration_gives_the_same(monkeypatch):
    """What is measured on a GPU to be the fastest may be any of them."""
    case = ConvCase("3-5", 1, size=(3, 9, 10), stride=2)
    wide = ConvCase("16-24", 1, size=(2, 7, 6), kernel_size=1)
    for kernel in (conv_level.conv_level_kernel, conv_grad_weight.conv_grad_weight_kernel):
        for config in kernel.configs:
            monkeypatch.setattr(kernel, "candidates", lambda configs, given, own=config: [own])
            for one in (case, wide):
                check_against_reference(conv2d, one, torch.float32, 1)


def test_hybrid_level_is_one_launch_and_its_table_is_made_once(monkeypatch):
    case = ConvCase(("1-2", "2-1:k5", "3-3:k7", "2-2"), size=(1, 5, 6))
    tensors = converted(draw(case), torch.float32)
    launches = []
    run = tuning.Tuned.run

    def counted(self, *args, **constants):
        launches.append(self)
        return run(self, *args, **constants)

    monkeypatch.setattr(tuning.Tuned, "run", counted)
    conv2d(case, tensors)
    made = work._conv_work.cache_info().misses
    conv2d(case, tensors)
    assert len(launches) == 2 and work._conv_work.cache_info().misses == made
