"""The operators ``torch.ops.bunit_kernels.*``: schemas in csrc/schema.cpp; here their fake kernels,
gradients and FLOP formulas, a file an operator family."""

from . import conv2d, linear, unit_conv2d, unit_conv2d_train, unit_linear
from ._check import MAX_DEPTH, MAX_INT, MAX_KERNEL, MAX_STRIDE, MAX_UNITS
from ._eager import call
from ._extension import CPU_MISSING, CUDA_MISSING

__all__ = [
    "CPU_MISSING",
    "CUDA_MISSING",
    "MAX_DEPTH",
    "MAX_INT",
    "MAX_KERNEL",
    "MAX_STRIDE",
    "MAX_UNITS",
    "OPERATORS",
    "call",
    "register",
]

_FAMILIES = (conv2d, linear, unit_conv2d, unit_conv2d_train, unit_linear)
#: By name.
OPERATORS = {o.name: o for family in _FAMILIES for o in family.OPERATORS}


def register(namespace: str) -> None:
    """Completes the operators of a namespace whose schemas are loaded."""
    for operator in OPERATORS.values():
        operator.register(namespace)


if CPU_MISSING is None:  # the schemas live in the compiled part
    register("bunit_kernels")
