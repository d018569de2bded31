"""The operators of ``torch.ops.bunit_triton``, under the schemas of the compiled part.

They are there, with fake kernels, gradients and FLOP formulas, once this package is imported: what
compiles or counts a network meets them before it has run. The kernels, and Triton where nothing
else brought it, are imported at the first call.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch

from .. import ops

NAMESPACE = "bunit_triton"

#: The module of this package whose OPERATORS holds each kernel.
MODULES = {
    "stacked_conv2d": "conv2d",
    "stacked_conv2d_grad_input": "conv2d",
    "stacked_conv2d_grad_weight": "conv2d",
    "stacked_conv2d_backward": "conv2d",
    "stacked_linear": "linear",
    "stacked_linear_grad_input": "linear",
    "stacked_linear_grad_weight": "linear",
    "stacked_unit_conv2d": "unit_conv2d",
    "stacked_unit_conv2d_train": "unit_conv2d_train",
    "stacked_unit_conv2d_train_backward": "unit_conv2d_train",
    "stacked_unit_linear": "unit_linear",
    "stacked_unit_linear_backward": "unit_linear",
}


def define() -> torch.library.Library:
    """Defines the operators; they last as long as what is returned."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for name in MODULES:
        schema = getattr(torch.ops.bunit_kernels, name).default._schema
        library.define(str(schema).removeprefix("bunit_kernels::"))
        for device in ("CUDA", "CPU"):  # the interpreter's tensors are on the CPU
            library.impl(name, _importing(name), device)
    ops.register(NAMESPACE)
    return library


def _importing(name: str) -> Callable:
    @functools.cache
    def kernel() -> Callable:
        return importlib.import_module(f".{MODULES[name]}", __package__).OPERATORS[name]

    def run(*args):
        ops.OPERATORS[name].check(*args)
        return kernel()(*args)

    return run
