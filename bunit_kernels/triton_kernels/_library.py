"""Registers the kernels with PyTorch, under the schemas of the compiled part."""

from __future__ import annotations

import torch

from .. import ops
from . import conv2d, linear, unit_conv2d, unit_conv2d_train, unit_linear
from .tuning import INTERPRETED

NAMESPACE = "bunit_triton"
_kept: list[torch.library.Library] = []  # what is registered lasts as long as its library


def register(on_cpu: bool = INTERPRETED) -> None:
    """Defines the operators of ``torch.ops.bunit_triton`` once, ``on_cpu`` for CPU tensors too."""
    if _kept:
        return
    library = torch.library.Library(NAMESPACE, "DEF")
    _kept.append(library)
    for family in (conv2d, linear, unit_conv2d, unit_conv2d_train, unit_linear):
        for name, kernel in family.OPERATORS.items():
            schema = getattr(torch.ops.bunit_kernels, name).default._schema
            library.define(str(schema).removeprefix("bunit_kernels::"))
            library.impl(name, kernel, "CUDA")
            if on_cpu:
                library.impl(name, kernel, "CPU")
    ops.register(NAMESPACE)
