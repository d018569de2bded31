"""BatchNorm over the batches of several processes, on the CPU too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBatchNorm(_BatchNorm):
    """What ``nn.SyncBatchNorm`` is on a GPU, for the CPU: there it refuses to run, and
    ``DistributedDataParallel`` refuses a network that has it.

    The statistics are those of all processes' batches together, as one process with all of them
    would have, and so are the gradients.
    """

    process_group = None

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least two dimensions, [N, C, ...], got {x.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape.

        Raises:
            ValueError: fewer than two dimensions, or one value a channel in all processes.
        """
        if not (self.training and dist.is_initialized() and _world(self.process_group) > 1):
            return super().forward(x)
        self._check_input_dim(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        local = torch.full((1,), x.numel() // x.shape[1], dtype=values.dtype)
        sums = _Sum.apply(torch.cat([values.sum(dims), local]), self.process_group)
        count = sums[-1].detach()
        if not count > 1:
            raise ValueError(
                f"batch statistics need more than one value a channel in all processes together, "
                f"got {int(count)}"
            )
        mean = sums[:-1] / count
        # Around the mean of all, in a second exchange: E[x^2] - E[x]^2 would cancel.
        centred = values - mean.view(shape)
        var = _Sum.apply((centred * centred).sum(dims), self.process_group) / count
        self._update(mean.detach(), var.detach() * (count / (count - 1)))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or not self.track_running_stats:
            return
        count, share = self.num_batches_tracked, self.momentum
        if count is not None:
            count.add_(1)
            share = 1 / count.item() if share is None else share
        elif share is None:
            return  # as BatchNorm: an average of all batches, which nobody counts
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over processes. What each loss owes to a process's part it owes through the sum, so
    the gradient is the sum of the gradients."""

    @staticmethod
    def forward(ctx, part, group):
        ctx.group = group
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def convert_sync_norm(model: nn.Module, process_group=None) -> nn.Module:
    """Makes every BatchNorm of ``model`` one over all processes of ``process_group`` (all there are
    where ``None``), those inside stacked layers included; parameters and names stay. On a GPU this
    is ``nn.SyncBatchNorm.convert_sync_batchnorm``. Returns the model."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model, process_group)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = CpuSyncBatchNorm
            module.process_group = process_group
    return model


def _world(group) -> int:
    return dist.get_world_size(group)
