"""The norms of a stacked layer, and those of single units that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ._units import the_same
from .sync_norm import CpuSyncBatchNorm

#: Norms of images and of features that treat each channel by itself: one over all units' channels
#: is the same as one a unit. Of exactly these classes, since what derives from one may do anything.
CONV_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, CpuSyncBatchNorm, nn.InstanceNorm2d)
LINEAR_NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm, CpuSyncBatchNorm)

_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var")


def check_splits(norms: Iterable[nn.Module], kinds: Sequence[type[nn.Module]]) -> None:
    """Raises ``ValueError`` where a layer's norm is not the same as one of its kind a unit."""
    for level, norm in enumerate(norms):
        if type(norm) not in (*kinds, nn.Identity):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"norms[{level}] is {norm}, which cannot be told apart by unit: expected one of "
                f"{names}, Identity"
            )


def slice_norm(norm: nn.Module, channels: slice) -> nn.Module:
    """The same norm of some of the channels, with copies of their values."""
    if isinstance(norm, nn.Identity):
        return nn.Identity()
    tensors = {name: tensor[channels] for name, tensor in norm_tensors(norm).items()}
    return _norm_like(norm, channels.stop - channels.start, tensors, norm.num_batches_tracked)


def join_norms(parts: Sequence[nn.Module]) -> nn.Module:
    """One norm for the channels of all ``parts``, with copies of their values; its count of batches
    is the highest.

    Raises:
        ValueError: they differ in class, options or mode.
    """
    kinds = [_kind(part) for part in parts]
    for what in kinds[0]:
        the_same((kind[what] for kind in kinds), f"{what} of the norms")
    tensors = [norm_tensors(part) for part in parts]
    joined = {name: torch.cat([own[name] for own in tensors]) for name in tensors[0]}
    counts = [p.num_batches_tracked for p in parts if p.num_batches_tracked is not None]
    width = sum(part.num_features for part in parts)
    return _norm_like(parts[0], width, joined, max(counts, default=None))


def norm_tensors(norm: nn.Module) -> dict[str, Tensor]:
    """The tensors ``[C]`` with a value a channel that a norm has, by name; of other modules than
    PyTorch's norms by channel none."""
    if not isinstance(norm, _NormBase):
        return {}
    found = {name: getattr(norm, name) for name in (*_PARAMETERS, *_STATISTICS)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _kind(norm: nn.Module) -> dict[str, object]:
    """What norms must have in common to be one."""
    return {
        "class": type(norm).__name__,
        "eps": norm.eps,
        "momentum": norm.momentum,
        "track_running_stats": norm.track_running_stats,
        "mode (train or eval)": "train" if norm.training else "eval",
        "tensors": tuple(norm_tensors(norm)),
        "process_group": getattr(norm, "process_group", None),
    }


def _norm_like(
    norm: nn.Module, width: int, tensors: dict[str, Tensor], count: Tensor | None
) -> nn.Module:
    """A norm of ``width`` channels with the class, options and mode of ``norm`` and copies of
    ``tensors``."""
    new = type(norm)(
        width, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    for name in _PARAMETERS:
        setattr(new, name, nn.Parameter(tensors[name].clone()) if name in tensors else None)
    for name in _STATISTICS:
        setattr(new, name, tensors[name].clone() if name in tensors else None)
    new.num_batches_tracked = None if count is None else count.clone()
    if hasattr(norm, "process_group"):
        new.process_group = norm.process_group
    return new.train(norm.training)
