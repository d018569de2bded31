"""One operator as PyTorch is to know it, beside its kernels: checks, fake kernel, gradient,
FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import register_flop_formula


@dataclass(frozen=True)
class Operator:
    """``check`` raises ``RuntimeError`` for arguments that do not fit, ``fake`` makes outputs of
    the right shapes for those that do, ``save`` is autograd's ``setup_context``, and ``flops``
    takes shapes in the place of tensors. ``backward`` takes ``torch.ops``' namespace of the
    operator before the usual arguments, as gradients call operators of the same namespace."""

    name: str
    check: Callable
    fake: Callable
    save: Callable
    backward: Callable
    flops: Callable

    def register(self, namespace: str) -> None:
        """Registers it for ``torch.ops.<namespace>``, which has its schema already."""
        ops, name = getattr(torch.ops, namespace), f"{namespace}::{self.name}"
        torch.library.register_fake(name)(self._checked_fake)
        backward = partial(self.backward, ops)
        torch.library.register_autograd(name, backward, setup_context=self.save)
        register_flop_formula(getattr(ops, self.name))(self.flops)

    def _checked_fake(self, *inputs):
        self.check(*inputs)
        return self.fake(*inputs)
