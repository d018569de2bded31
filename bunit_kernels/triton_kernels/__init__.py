"""Triton kernels: the operators of csrc/schema.cpp once more, as ``torch.ops.bunit_triton.*``.

Importing this package registers the operators and needs no Triton; their first call does. Each
level of all units is one launch; linear units run all their levels in one. On a GPU the kernels are
compiled at first use; where ``TRITON_INTERPRET=1`` was set before Triton was first imported, they
run on CPU tensors.

They are plain operators (``define`` and ``impl``) and no ``torch.library.triton_op``: what a
compiler would see inside are launches of work lists that it could neither merge nor move, and the
gradients, FLOP formulas and fake kernels of :mod:`bunit_kernels.ops` serve as they are.
"""

from ..ops import CPU_MISSING
from ._operators import NAMESPACE, define

__all__ = ["NAMESPACE"]

if CPU_MISSING is None:  # the schemas live in the compiled part
    _library = define()
