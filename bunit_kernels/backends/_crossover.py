"""Where ``auto`` leaves a call to PyTorch's own operators.

CPU: the widths of units (``StackLayout.width``) at which PyTorch's operators are at least as fast;
for operations that a table does not have, none up to 64. Measured with ``python
bench/crossover.py``, torch 2.13.0 (CPU build), on two otherwise idle cores of virtual machines:

* AMX: an Intel Xeon (Granite Rapids), 2026-11-29, float32, and bfloat16 with ``--dtype bfloat16``;
  before rows went in pairs and back without padding, which made ours faster since.
* AVX-512: an AMD EPYC (Zen 4), 2026-11-30, the same, with both. Its bfloat16 products of linear
  units are faster for large batches only; one width stands for all.
* AVX2: an AMD EPYC (Zen 3), 2026-11-27; where units of 8 and more channels have since become
  faster, the Xeon held to AVX2 (``BUNIT_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2
  ONEDNN_MAX_CPU_ISA=AVX2``), 2026-11-29. Processors with less than that, and others than x86, are
  taken to be like these.

Depthwise levels have a rule of their own, ``depthwise_prefers_torch``: PyTorch is as good in
channels_last only, where a channel a lane suits it and ours transpose. Measured by ``python
bench/depthwise.py`` with AVX-512 and AMX (an Intel Xeon, 2026-12-01), PyTorch's time over ours,
geometric means of five sizes, without gradient, with it, and whole training of a level with its
norm: float32 3x3 NCHW 2.1, 1.7, 1.8, channels_last 0.82, 0.68, 0.79; 5x5 1.5, 4.7, 4.1, and 0.70,
1.6, 1.2; of stride 2 less, by up to half. In bfloat16 with stride 2 PyTorch's gradients take 2 to
10 times as long as ours in either format.

Units that go level by level are chosen for at each level, in planes where that is faster on the
whole (``prefers_planes``).

CUDA: one width, by arithmetic and not measured: our kernels run on the plain FMA units, and a
convolution on tensor cores pays once its tiles of 16 channels are full. Triton's kernels for such
widths wait for a GPU that measures them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .._tensor_format import is_channels_last
from ..layout import ConvGeometry, StackLayout
from ..ops import CPU_MISSING

SHORT = 16  # pixels a row
LOW_PRECISION = (torch.bfloat16, torch.float16)


def at_least(width: int) -> range:
    return range(width, 1 << 30)


NEVER = range(0)


class Widths(NamedTuple):
    """The widths for images, and those for images of rows shorter than ``SHORT``."""

    long_rows: range
    short_rows: range


#: (operation, whether a gradient may follow, whether channels_last) -> widths
WITH_AMX = {
    ("conv2d", False, False): Widths(NEVER, NEVER),
    ("conv2d", False, True): Widths(range(12, 24), range(12, 24)),
    ("conv2d", True, False): Widths(at_least(64), at_least(24)),
    ("conv2d", True, True): Widths(at_least(8), at_least(8)),
    ("unit_conv2d", False, False): Widths(NEVER, NEVER),
    ("unit_conv2d", False, True): Widths(NEVER, at_least(96)),
    ("unit_conv2d", True, False): Widths(at_least(48), at_least(16)),
    ("unit_conv2d", True, True): Widths(at_least(8), at_least(8)),
    ("unit_conv2d_train", True, False): Widths(at_least(96), at_least(96)),
    ("unit_conv2d_train", True, True): Widths(at_least(16), at_least(16)),
}
WITH_AMX_BFLOAT16 = {
    ("conv2d", False, False): Widths(at_least(64), at_least(24)),
    ("conv2d", False, True): Widths(at_least(4), at_least(4)),
    ("conv2d", True, False): Widths(at_least(24), at_least(12)),
    ("conv2d", True, True): Widths(at_least(4), at_least(8)),
    ("unit_conv2d", False, False): Widths(at_least(32), at_least(32)),
    ("unit_conv2d", False, True): Widths(at_least(8), at_least(8)),
    ("unit_conv2d", True, False): Widths(at_least(12), at_least(12)),
    ("unit_conv2d", True, True): Widths(at_least(4), at_least(4)),
    ("unit_conv2d_train", True, False): Widths(at_least(24), at_least(12)),
    ("unit_conv2d_train", True, True): Widths(at_least(4), at_least(8)),
}
WITH_AVX512 = {
    ("conv2d", False, False): Widths(NEVER, NEVER),
    ("conv2d", False, True): Widths(NEVER, NEVER),
    ("conv2d", True, False): Widths(at_least(96), NEVER),
    ("conv2d", True, True): Widths(at_least(48), NEVER),
    ("unit_conv2d", False, False): Widths(NEVER, NEVER),
    ("unit_conv2d", False, True): Widths(NEVER, NEVER),
    ("unit_conv2d", True, False): Widths(at_least(48), at_least(24)),
    ("unit_conv2d", True, True): Widths(at_least(32), at_least(24)),
    ("unit_conv2d_train", True, False): Widths(at_least(96), NEVER),
    ("unit_conv2d_train", True, True): Widths(at_least(48), at_least(48)),
}
WITH_AVX512_BFLOAT16 = {
    ("conv2d", False, False): Widths(at_least(64), at_least(8)),
    ("conv2d", False, True): Widths(at_least(6), at_least(6)),
    ("conv2d", True, False): Widths(at_least(24), at_least(12)),
    ("conv2d", True, True): Widths(at_least(6), at_least(6)),
    ("unit_conv2d", False, False): Widths(at_least(48), at_least(12)),
    ("unit_conv2d", False, True): Widths(at_least(48), at_least(6)),
    ("unit_conv2d", True, False): Widths(at_least(12), at_least(12)),
    ("unit_conv2d", True, True): Widths(at_least(6), at_least(6)),
    ("unit_conv2d_train", True, False): Widths(at_least(12), at_least(12)),
    ("unit_conv2d_train", True, True): Widths(at_least(3), at_least(6)),
    ("linear", False, False): Widths(at_least(48), at_least(48)),
    ("linear", True, False): Widths(at_least(48), at_least(48)),
    ("unit_linear", False, False): Widths(at_least(48), at_least(48)),
    ("unit_linear", True, False): Widths(at_least(48), at_least(48)),
}
WITH_AVX2 = {
    ("conv2d", False, False): Widths(NEVER, NEVER),
    ("conv2d", False, True): Widths(NEVER, NEVER),
    ("conv2d", True, False): Widths(at_least(64), at_least(96)),
    ("conv2d", True, True): Widths(at_least(64), at_least(96)),
    ("unit_conv2d", False, False): Widths(NEVER, NEVER),
    ("unit_conv2d", False, True): Widths(NEVER, NEVER),
    ("unit_conv2d", True, False): Widths(at_least(64), at_least(96)),
    ("unit_conv2d", True, True): Widths(at_least(64), at_least(32)),
    ("unit_conv2d_train", True, False): Widths(at_least(96), at_least(96)),
    ("unit_conv2d_train", True, True): Widths(at_least(64), at_least(96)),
}
HAS_AVX512 = CPU_MISSING is None and torch.ops.bunit_kernels.cpu_isa() == "avx512"
HAS_AMX = HAS_AVX512 and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
CUDA_FROM_WIDTH = 16


def _widths(dtype: torch.dtype) -> dict[tuple[str, bool, bool], Widths]:
    if not HAS_AVX512:
        return WITH_AVX2
    if dtype == torch.bfloat16:
        return WITH_AMX_BFLOAT16 if HAS_AMX else WITH_AVX512_BFLOAT16
    return WITH_AMX if HAS_AMX else WITH_AVX512


def prefers_torch(op: str, layout: StackLayout, geometry: ConvGeometry | None, x: Tensor) -> bool:
    """Whether PyTorch's operators were measured (on CUDA: are expected) to be faster than ours for
    such units and input."""
    if x.is_cuda:
        return layout.width >= CUDA_FROM_WIDTH
    grad = op == "unit_conv2d_train" or torch.is_grad_enabled()
    kernel = None if geometry is None else depthwise_kernel(layout)
    if kernel is not None:
        slower = depthwise_prefers_torch(kernel, geometry.stride, grad, x)
        return slower and not torch_errs(geometry, x)
    channels_last = geometry is not None and is_channels_last(x)
    widths = _widths(x.dtype).get((op, grad, channels_last))
    if widths is None:
        return False
    # By name: torch.compile of torch 2.11 takes no bool as an index.
    widths = widths.short_rows if _known(x.shape[-1] < SHORT) else widths.long_rows
    return layout.width in widths and (geometry is None or not torch_errs(geometry, x))


def depthwise_kernel(layout: StackLayout) -> int | None:
    """The kernel size of a single depthwise level: all blocks alike, of one channel in and out."""
    level = layout.levels[0]
    c_in, c_out, kernel = level.blocks[0]
    return kernel if layout.depth == 1 and level.uniform and c_in == c_out == 1 else None


def depthwise_prefers_torch(kernel: int, stride: int, grad: bool, x: Tensor) -> bool:
    """Whether PyTorch's operators are faster for a depthwise level on a CPU."""
    if kernel == 1:
        return False
    low = x.dtype in LOW_PRECISION
    if grad:
        return is_channels_last(x) and kernel < 5 and not (low and stride > 1)
    return is_channels_last(x) or (low and stride > 1 and kernel < 7)


def prefers_planes(geometry: ConvGeometry, x: Tensor) -> bool:
    """Whether units that go level by level are faster with the channels of a channels_last ``x`` as
    planes, copies included: between levels of which one has more than twice the input's channels,
    on a CPU. With units 4-24-24-4 of kernels 1, 3, 1, the middle one depthwise, 32 images of 28x28,
    a training step took 48 ms in place of 85, inference 12 of 20 (as above). In low precision
    PyTorch's operators for channels_last are faster."""
    if x.is_cuda or x.dtype in LOW_PRECISION or not is_channels_last(x):
        return False
    widest = max(level.out_channels for level in geometry.layout.levels)
    return widest > 2 * geometry.layout.in_channels


def torch_errs(geometry: ConvGeometry, x: Tensor) -> bool:
    """Whether PyTorch's own convolution of ``x`` fails on processors with instructions for half
    precision, forward and back (torch 2.13): bfloat16 outputs one pixel wide of a stride above 1
    are wrong (with AMX, pytorch/pytorch#188426), and outputs that meet no pixel, all taps being in
    the padding, may end the process (bfloat16, 1x1 pixels, kernel 2, padding 2, dilation 3;
    float16, 2x1 pixels, kernel 1, padding 1, stride 2)."""
    if x.dtype not in LOW_PRECISION:
        return False
    sizes = geometry.level_sizes(*x.shape[2:])
    kernels = [level.units[0].kernel for level in geometry.layout.levels]
    if any(geometry.pad(k) > geometry.dilation * (k - 1) for k in kernels):
        return True
    # What is not known of a size while it is a symbol is taken to be so that it fails.
    if not all(_known(size >= geometry.dilation) for level in sizes[:-1] for size in level):
        return True
    narrow = not _known(sizes[1][1] > 1)
    return x.dtype == torch.bfloat16 and geometry.stride > 1 and narrow


def _known(condition) -> bool:
    """Whether a comparison of sizes is true; of symbolic ones, whether it always is. That puts no
    guard on them, which would be compiled again or refused by ``torch.export``."""
    return statically_known_true(condition) if torch.compiler.is_compiling() else condition
