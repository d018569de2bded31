"""What bench/resources/triton_kernels.py compiles for: layers that together launch every kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from unittest import mock

import torch

from bunit_kernels import PAPER_POOL, StackedConv2d, StackedLinear, backend
from bunit_kernels.backends.triton import Triton

DTYPES = ("float32", "bfloat16")
FORMATS = (torch.contiguous_format, torch.channels_last)
CONVS = (("2-4-2", 8, 1), ("16-32-32", 4, 1), ("16-16-16", 4, 2), (PAPER_POOL[:3], None, 1))
UNIFORM = (("4-8-4", 8), ("16-32-16", 8), ("64-64-64", 4), ("16-64-16", 4))
LINEARS = (*UNIFORM, (("4-8-4", "16-64-2"), None))


def run(names: Sequence[str] = DTYPES) -> Iterator[str]:
    """Runs a layer after another in each of the dtypes, forward and backward, on CPU tensors;
    yields its name."""
    dtypes = [getattr(torch, name) for name in names]
    with mock.patch.object(Triton, "why_not", lambda *_: None), backend("triton"):
        for (units, count), dtype in itertools.product(LINEARS, dtypes):
            layer = StackedLinear(units, count, dtype=dtype)
            x = torch.zeros(128, layer.in_channels, dtype=dtype, requires_grad=True)
            layer(x).sum().backward()
            yield f"{units} {dtype}"
        for (units, count, stride), dtype, form in itertools.product(CONVS, dtypes, FORMATS):
            layer = StackedConv2d(units, count, stride=stride, dtype=dtype)
            x = torch.zeros(2, layer.in_channels, 28, 28, dtype=dtype)
            x = x.to(memory_format=form).requires_grad_()
            layer(x).sum().backward()
            with torch.no_grad():
                layer.eval()(x)
            yield f"{units} {dtype} {form}"
