"""What the two stacked layers have in common: packed parameters, norms, batch statistics."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..activations import check_activation
from ..layout import StackLayout
from ..units import UnitSpec
from ._norms import join_norms
from ._parameters import (
    PackedParameters,
    initialise,
    make_biases,
    make_weights,
    pack_loop_state,
)
from ._replace import has_hooks
from ._units import UnitChain


class StackedLayer(nn.Module):
    """Base of :class:`StackedConv2d` and :class:`StackedLinear`."""

    _norm_class: type[nn.Module]

    def __init__(self, layout, *, norm, activation, out_activation, bias, device, dtype):
        super().__init__()
        if norm not in ("batch", None):
            raise ValueError(f'norm must be "batch" or None, got {norm!r}')
        self.layout: StackLayout = layout
        self.activation = check_activation(activation)
        self.out_activation = check_activation(out_activation, "out_activation")
        factory = {"device": device, "dtype": dtype}
        self.weights = make_weights(layout, **factory)
        has_bias = norm is None if bias is None else bool(bias)
        self.biases = make_biases(layout, **factory) if has_bias else None
        self.norms = None
        if norm == "batch":
            self.norms = nn.ModuleList(
                self._norm_class(level.out_channels, **factory) for level in layout.levels
            )
        self.register_load_state_dict_pre_hook(pack_loop_state)
        self.reset_parameters()

    @property
    def units(self) -> tuple[UnitSpec, ...]:
        """One spec a unit, in the order of their channels."""
        return self.layout.units

    @property
    def in_channels(self) -> int:
        return self.layout.in_channels

    @property
    def out_channels(self) -> int:
        return self.layout.out_channels

    @property
    def shuffle(self) -> bool:
        """Whether output channels go round robin, as ``layout.shuffle_index`` says."""
        return self.layout.shuffle

    def set_shuffle(self, shuffle: bool) -> None:
        """Shuffles the output from now on, or no longer; parameters stay as they are.

        Raises:
            TypeError: it is no bool.
        """
        self.layout = replace(self.layout, shuffle=shuffle)

    def reset_parameters(self) -> None:
        """Draws new weights and biases, as each unit's own convolutions or linear maps would, and
        resets the norms."""
        initialise(self.layout, self.weights, self.biases)
        for norm in self.norms or ():
            norm.reset_parameters()

    def level_activation(self, level: int) -> str:
        return self.out_activation if level == self.layout.depth - 1 else self.activation

    def read_biases(self) -> list[Tensor]:
        """One a level, or none."""
        biases = self.biases
        return [] if biases is None else biases()

    def folded(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases with the norms' running statistics folded in (differentiable), made
        anew at each call: writes through ``.data`` move no version counter, so that kept values
        could go stale unseen. :func:`bunit_kernels.fuse` folds once and for all."""
        weights, biases = [], []
        own_weights, own_biases = self.weights(), self.read_biases()
        for i, (level, norm) in enumerate(zip(self.layout.levels, self.norms, strict=True)):
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            mean = norm.running_mean - own_biases[i] if own_biases else norm.running_mean
            weight = own_weights[i]
            folded = weight * level.spread(scale)
            shift = torch.addcmul(norm.bias, mean, scale, value=-1)
            dtype = weight.dtype
            weights.append(folded if folded.dtype == dtype else folded.to(dtype))
            biases.append(shift if shift.dtype == dtype else shift.to(dtype))
        return weights, biases

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Folds the norms' running statistics into new weights and biases, and drops the norms.
        Norms that a constant scale cannot stand for stay."""
        if self.norms is None or not all(map(self._foldable, self.norms)):
            return
        weights, biases = self.folded()
        trained = [weight.requires_grad for weight in self.weights]
        self.weights, self.biases = (
            PackedParameters(map(nn.Parameter, values, trained)) for values in (weights, biases)
        )
        self.train(self.training)
        self.norms = None

    def _foldable(self, norm: nn.Module) -> bool:
        return (
            type(norm) in (self._norm_class, nn.SyncBatchNorm)
            and not norm.training
            and norm.affine
            and norm.bias is not None
            and norm.running_mean is not None
            and not has_hooks(norm)
        )

    def norms_are(self, training: bool) -> bool:
        """Whether every norm is a plain BatchNorm in that mode, so that a fused operator may stand
        for it. SyncBatchNorm, hooks or a user's own norm make it a module to be called."""
        first = self.norms[0]
        return all(
            type(norm) is self._norm_class
            and norm.training is training
            and norm.affine
            and norm.bias is not None
            and norm.running_mean is not None
            and (norm.track_running_stats or not training)
            and norm.momentum is not None
            and norm.eps == first.eps
            and not has_hooks(norm)
            for norm in self.norms
        )

    @torch.no_grad()
    def _copy_units(self, chains: list[UnitChain]) -> StackedLayer:
        """Takes over the parameters and the norms' state of units read by ``read_units``."""
        self.train(chains[0].training)
        for i, level in enumerate(self.layout.levels):
            linears = [chain.linears[i] for chain in chains]
            self.weights[i].copy_(level.pack(linear.weight for linear in linears))
            if self.biases is not None:
                self.biases[i].copy_(torch.cat([linear.bias for linear in linears]))
            if self.norms is not None:
                self.norms[i] = join_norms([chain.norms[i] for chain in chains])
        return self

    def extra_repr(self) -> str:
        parts = [self.layout.describe(), f"{self.in_channels} -> {self.out_channels}"]
        parts += self._shape_repr()
        parts += ["shuffle"] if self.shuffle else []
        if self.biases is not None:
            parts.append("bias")
        parts.append(f"activation={self.activation}")
        parts.append(f"out_activation={self.out_activation}")
        return ", ".join(parts)

    def _shape_repr(self) -> list[str]:
        return []


def update_running(norms: nn.ModuleList, stats, empty: bool) -> None:
    """Moves the running statistics toward a batch's, as BatchNorm does; an empty batch, which has
    none, is counted all the same. ``stats`` are without gradient: a ``no_grad`` would be kept in
    exported programs, which torch 2.13 does not load then."""
    for norm, (mean, var) in zip(norms, stats, strict=True):
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        if not empty:
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(var.to(norm.running_var.dtype), norm.momentum)
