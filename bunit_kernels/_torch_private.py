"""Names that PyTorch keeps to itself, each with what is done where a release lacks it."""

from __future__ import annotations

import torch


def _no_transforms() -> bool:
    return False


def transforms_active_of(module):
    """``module``'s test for torch.func's transforms; without one, none is taken to be active:
    'auto' then runs our operators under them, whose gradients these refuse or take as they are."""
    return getattr(module, "_are_functorch_transforms_active", _no_transforms)


def below_autograd_of(module):
    """``module``'s guard that skips autograd's dispatch; without one, ``torch.no_grad``, which
    gives the same tensors after more calls."""
    return getattr(module, "_AutoDispatchBelowAutograd", torch.no_grad)


transforms_active = transforms_active_of(torch._C)
below_autograd = below_autograd_of(torch._C)
