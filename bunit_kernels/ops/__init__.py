"""The operators ``torch.ops.bunit_kernels.*``: schemas in csrc/schema.cpp; here their fake kernels,
gradients and FLOP formulas, a file an operator family."""

from ._extension import CPU_MISSING, CUDA_MISSING

if CPU_MISSING is None:  # the schemas live in the compiled part
    from . import conv2d, linear, unit_conv2d, unit_conv2d_train, unit_linear  # noqa: F401

__all__ = ["CPU_MISSING", "CUDA_MISSING"]
