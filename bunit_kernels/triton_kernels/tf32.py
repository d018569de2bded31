"""Whether products of float32 may be TF32's, as PyTorch's own operators are told."""

from __future__ import annotations

import torch


def convolutions_allow_tf32() -> bool:
    """What PyTorch's convolutions obey. The setting of one operator is read where PyTorch has
    one: the older ``allow_tf32`` raises RuntimeError once convolutions and RNNs differ."""
    return _allows(getattr(torch.backends.cudnn, "conv", None), torch.backends.cudnn)


def matmul_allows_tf32() -> bool:
    """What PyTorch's products of matrices obey, linear layers among them."""
    return _allows(torch.backends.cuda.matmul, torch.backends.cuda.matmul)


def precision(dtype: torch.dtype, tf32: bool) -> str:
    """Of products in ``tl.dot``; ``tf32`` says whether those of float32 may be TF32's."""
    return "tf32" if tf32 and dtype == torch.float32 else "ieee"


def _allows(setting, older) -> bool:
    precision = getattr(setting, "fp32_precision", None)
    return older.allow_tf32 if precision is None else precision == "tf32"
