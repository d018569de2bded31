"""What bench/resources/triton_kernels.py compiles for: layers that together launch every kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from unittest import mock

import torch

from bunit_kernels import PAPER_POOL, StackedConv2d, StackedLinear, backend
from bunit_kernels.backends.triton import Triton
from bunit_kernels.triton_kernels import tf32

DTYPES = ("float32", "tf32", "bfloat16")  # tf32: float32 whose products may be TF32's
FORMATS = (torch.contiguous_format, torch.channels_last)
WIDE = {"16-32-32", "16-16-16", "16-32-16", "64-64-64", "16-64-16"}  # matrix units take these
CONVS = (("2-4-2", 8, 1), ("16-32-32", 4, 1), ("16-16-16", 4, 2), (PAPER_POOL[:3], None, 1))
UNIFORM = (("4-8-4", 8), ("16-32-16", 8), ("64-64-64", 4), ("16-64-16", 4))
LINEARS = (*UNIFORM, (("4-8-4", "16-64-2"), None))


def run(names: Sequence[str] = DTYPES) -> Iterator[str]:
    """Runs a layer after another in each of the dtypes, forward and backward, on CPU tensors;
    yields its name."""
    for name in names:
        with (
            mock.patch.object(Triton, "why_not", lambda *_: None),
            mock.patch.object(tf32, "_allows", lambda *_: name == "tf32"),  # noqa: B023
            backend("triton"),
        ):
            yield from _run(name)


def _run(name: str) -> Iterator[str]:
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)

    def chosen(layers):
        return [of for of in layers if name != "tf32" or of[0] in WIDE]

    for units, count in chosen(LINEARS):
        layer = StackedLinear(units, count, dtype=dtype)
        x = torch.zeros(128, layer.in_channels, dtype=dtype, requires_grad=True)
        layer(x).sum().backward()
        yield f"{units} {name}"
    for (units, count, stride), form in itertools.product(chosen(CONVS), FORMATS):
        layer = StackedConv2d(units, count, stride=stride, dtype=dtype)
        x = torch.zeros(2, layer.in_channels, 28, 28, dtype=dtype)
        x = x.to(memory_format=form).requires_grad_()
        layer(x).sum().backward()
        with torch.no_grad():
            layer.eval()(x)
        yield f"{units} {name} {form}"
